// The page as a whole: takes the feed's updates apart, hands them to the panels, and says when a button can be pressed.
//
// A snapshot replaces everything (at the beginning, after updates were missed, after a reconnection); what follows
// changes parts. The server subscribes before it takes the snapshot, so an update may come twice: `isNew` drops it.
// Nothing is drawn or computed between two updates; the fleet on this machine needs the processor more.

import { Charts } from "./charts.js";
import { act, follow } from "./connection.js";
import { byId, count, setText } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { Events, Figures, Nodes, Promises, Report, Story, toast } from "./panels.js";

/** How far back a doubled update can lie. */
const REMEMBERED_MAX = 500;

const figures = new Figures();
const nodes = new Nodes();
const promises = new Promises();
const events = new Events();
const story = new Story();
const report = new Report();
const charts = new Charts(byId("charts"), byId("chart-tip"));
const map = new HeatMap(byId("map"), byId("ramp"), { onHover: showTip, onSelect: selectMachine });

/** The last tick, or null; and whether the server is there. */
let now = null;
let connected = false;
/** Actions that wait for their answer. */
const waiting = new Set();
/** Names of machines as stories told them: in a file of the user's own they are not ours. */
const names = new Map();
const remembered = new Set();

function isNew(message) {
  const { at_s, kind, text, leader, term, number, seq } = message;
  const key = JSON.stringify([at_s, kind, text, leader, term, number, seq]);
  if (remembered.has(key)) return false;
  remembered.add(key);
  if (remembered.size > REMEMBERED_MAX) remembered.delete(remembered.values().next().value);
  return true;
}

const handlers = {
  snapshot(snapshot) {
    remembered.clear();
    for (const item of [...snapshot.events, ...snapshot.timeline, ...snapshot.stories]) isNew(item);
    for (const item of snapshot.stories) names.set(item.number, item.machine);
    charts.reset(snapshot);
    events.reset(snapshot.events);
    story.reset(snapshot.stories);
    report.reset(snapshot.report);
    handlers.tick(snapshot);
  },
  tick(tick) {
    now = tick;
    figures.tick(tick);
    nodes.tick(tick);
    promises.tick(tick);
    charts.tick(tick);
    const { alerts, silent } = map.update(tick.machines, tick.columns, tick.health);
    setText(byId("map-summary"), `${count(alerts)} alerting${silent > 0 ? `, ${count(silent)} silent` : ""}`);
    showMachine();
    showButtons();
    showBanner();
  },
  event(event) {
    if (!isNew(event)) return;
    events.add(event);
    charts.event(event);
  },
  leader(change) {
    if (isNew(change)) charts.leader(change);
  },
  story(told) {
    if (!isNew(told)) return;
    names.set(told.number, told.machine);
    story.add(told);
  },
  report(message) {
    report.show(message.report);
  },
};

function onState(state) {
  connected = state === "open";
  showButtons();
  showBanner();
}

function showBanner() {
  const banner = byId("banner");
  let text = "";
  if (!connected && now !== null) {
    const last = now.phase === "done" ? "" : " before its report was made";
    text = `The demo has ended${last}. This is the last that was seen of it; start it again with: buttress demo`;
  } else if (now?.phase === "failed") {
    text = "The run has failed. The terminal says why.";
  }
  setText(banner, text);
  banner.hidden = text === "";
  document.body.classList.toggle("ended", !connected && now !== null);
}

// Machines

function machineName(machine) {
  return names.get(machine) ?? `m-${String(machine).padStart(5, "0")}`;
}

function machineState(machine) {
  const state = map.state(machine);
  if (state.kind === "alert") return "◆ alert";
  return state.kind === "silent" ? "silent" : `strain ${state.percent} %`;
}

function showTip(machine, x, y) {
  const tip = byId("map-tip");
  tip.hidden = machine === null;
  if (machine === null) return;
  tip.textContent = `${machineName(machine)}\n${machineState(machine)}`;
  const canvas = byId("map");
  const left = Math.min(canvas.offsetLeft + x + 14, canvas.offsetLeft + canvas.clientWidth - tip.offsetWidth);
  tip.style.left = `${left}px`;
  tip.style.top = `${canvas.offsetTop + (y > 60 ? y - tip.offsetHeight - 10 : y + 16)}px`;
}

function selectMachine() {
  showMachine();
  showButtons();
}

function showMachine() {
  if (map.selected === null) return;
  const state = map.state(map.selected);
  byId("machine").dataset.state = state.kind;
  setText(byId("machine-name"), machineName(map.selected));
  setText(byId("machine-state"), machineState(map.selected));
}

// Buttons

/** What each button needs: `reason` says why it cannot be pressed, or null; `does` what it would do now. */
const actions = {
  "kill-leader": {
    reason(tick) {
      const alive = tick.cluster.nodes.filter((node) => node.alive).length;
      if (tick.cluster.leader === null) return "there is no leader at the moment";
      return (alive - 1) * 2 > tick.cluster.nodes.length ? null : "no majority would be left";
    },
    does: (tick) => `SIGKILL to ${tick.cluster.leader}, term ${tick.cluster.term}`,
  },
  restart: {
    reason: (tick) => (tick.cluster.nodes.some((node) => !node.alive) ? null : "every node is up"),
    does: (tick) => `${tick.cluster.nodes.find((node) => !node.alive).name}, on its old data`,
  },
  "swap-model": {
    reason: (tick) => (tick.model.generation > 0 ? null : "no model is deployed yet"),
    does: (tick) => `now ${tick.model.version}, generation ${tick.model.generation}`,
  },
  "wear-out": {
    reason: () => (map.selected === null ? "select one in the map" : null),
    label: () => (map.selected === null ? "Wear out a machine" : `Wear out ${machineName(map.selected)}`),
    does: () => "damages its bearing",
    path: () => `wear-out?machine=${map.selected}`,
    done: () => story.prefer(map.selected),
  },
};

function reasonAgainst(name) {
  if (!connected) return now === null ? "connecting" : "the demo has ended";
  if (now === null) return "waiting for the fleet";
  if (waiting.has(name)) return "asking…";
  if (["starting", "deploying", "connecting"].includes(now.phase)) return "the plant does not play yet";
  if (now.phase !== "playing") return "the play is over";
  return actions[name].reason(now);
}

function showButtons() {
  for (const [name, action] of Object.entries(actions)) {
    const button = byId(name);
    const reason = reasonAgainst(name);
    button.disabled = reason !== null;
    const text = reason ?? action.does(now);
    if (action.label) setText(button.querySelector("b span"), action.label());
    setText(button.querySelector("small"), text);
    button.title = text;
  }
}

for (const [name, action] of Object.entries(actions)) {
  byId(name).addEventListener("click", async () => {
    waiting.add(name);
    showButtons();
    const answer = await act(action.path ? action.path() : name);
    waiting.delete(name);
    if (answer.ok) action.done?.();
    toast(answer);
    showButtons();
  });
}

showButtons();
follow((message) => handlers[message.type]?.(message), onState);
