// Everything on the page that is text: figures, nodes, promises, events, the story of an anomaly, toasts, the report.
// Each panel keeps its elements and changes their text; only lists that grow make new elements.

import { byId, count, digest, make, ms, percent, seconds, setText } from "./format.js";

const EVENTS_MAX = 200;
const STORIES_MAX = 20;
/** Long enough to read; then the newest anomaly is told. */
const STORY_SHOWN_MS = 8000;
const TOAST_SHOWN_MS = 6000;
const TOASTS_MAX = 4;

const PHASES = {
  starting: "starting the nodes",
  deploying: "deploying",
  connecting: "connecting",
  playing: "playing",
  draining: "waiting for the last verdicts",
  checking: "reading everything back",
  done: "done",
  failed: "failed",
};

const EVENT_SYMBOLS = {
  start: "▸", deploy: "▸", kill: "✕", election: "★", restart: "↻", "caught-up": "✓", swap: "⇄", trap: "!",
  contained: "✓", "wear-out": "◆", stop: "■", check: "▸",
};

const PROMISE_STATES = {
  holding: { symbol: "●", text: "holding" },
  pending: { symbol: "○", text: "at the end" },
  held: { symbol: "✓", text: "held" },
  broken: { symbol: "✕", text: "broken" },
};

/** Header and the row of large figures. */
export class Figures {
  tick(tick) {
    document.body.dataset.phase = tick.phase;
    setText(byId("phase"), PHASES[tick.phase] ?? tick.phase);
    setText(byId("elapsed"), seconds(tick.elapsed_s));
    setText(byId("duration"), tick.duration_s ? `of ${seconds(tick.duration_s)}` : "");
    byId("progress").value = tick.duration_s ? Math.min(1, tick.elapsed_s / tick.duration_s) : 0;
    const model = tick.model.generation ? `, model ${tick.model.version} (generation ${tick.model.generation})` : "";
    setText(byId("facts"), `${count(tick.machines)} machines, ${tick.cluster.nodes.length} nodes, seed ${tick.seed}${model}`);
    const { counters, rates, latency_ms: latency } = tick;
    setText(byId("readings-rate"), count(rates.acked));
    setText(byId("readings-total"), `${count(counters.acked)} acknowledged\nof ${count(counters.sent)} sent`);
    setText(byId("verdicts-rate"), count(rates.verdicts));
    setText(byId("verdicts-total"), `${count(counters.verdicts)} judged\n${count(counters.retries)} sent again`);
    setText(byId("anomalies-total"), count(counters.anomalies));
    setText(byId("anomalies-rate"), `${count(rates.anomalies)} a second\nby the function`);
    setText(byId("p50"), ms(latency.p50));
    setText(byId("p99"), ms(latency.p99));
    setText(byId("alert-latency"), `sensor to alert\n${ms(latency.alert_p50)}, p99 ${ms(latency.alert_p99)}`);
    setText(byId("latency-max"), `max ${ms(latency.max)}\nin the last ${latency.window_s || 5} s`);
  }
}

/** A card per node. */
export class Nodes {
  constructor() {
    this.cards = new Map();
  }

  tick({ cluster }) {
    const known = cluster.nodes.map((node) => node.name);
    if (known.join() !== [...this.cards.keys()].join()) this.build(known);
    const committed = Math.max(0, ...cluster.nodes.map((node) => node.committed));
    for (const node of cluster.nodes) {
      const card = this.cards.get(node.name);
      const role = !node.alive ? "dead" : node.leader ? "leader" : "follower";
      card.root.dataset.role = role;
      setText(card.role, { dead: "✕ dead", leader: "★ leader", follower: "● follower" }[role]);
      setText(card.applied, node.alive ? count(node.applied) : "–");
      const behind = Math.max(0, committed - node.applied);
      setText(card.detail, node.alive ? `term ${node.term}, ${behind < 50 ? "up to date" : `${count(behind)} behind`}` : "no process");
      card.bar.value = node.alive && committed > 0 ? node.applied / committed : 0;
    }
  }

  build(names) {
    this.cards.clear();
    const roots = names.map((name, at) => {
      const [role, applied, detail] = [make("em", ""), make("b", ""), make("small", "")];
      const bar = make("progress", "");
      bar.max = 1;
      bar.ariaLabel = `${name}: share of the log that is applied`;
      const root = make("article", "node", make("h3", "", name, role), make("p", "", "applied ", applied), bar, detail);
      root.dataset.node = name;
      root.style.setProperty("--node", `var(--node-${(at % 7) + 1})`);
      this.cards.set(name, { root, role, applied, detail, bar });
      return root;
    });
    byId("nodes").replaceChildren(...roots);
  }
}

/** The promises with their state, told by symbol and word. */
export class Promises {
  tick({ promises }) {
    const shown = JSON.stringify(promises);
    if (shown === this.shown) return;
    this.shown = shown;
    byId("promises").replaceChildren(...promises.map((promise) => promiseItem(promise.text, promise.state, promise.id)));
  }
}

function promiseItem(text, state, id) {
  const { symbol, text: word } = PROMISE_STATES[state] ?? { symbol: "?", text: state };
  const mark = make("i", "", symbol);
  mark.ariaHidden = "true";
  const item = make("li", "promise", mark, make("span", "", text, " ", make("small", "", word)));
  item.dataset.state = state;
  item.title = id;
  return item;
}

/** What happened, newest first. */
export class Events {
  reset(events) {
    byId("events").replaceChildren(...events.slice(-EVENTS_MAX).reverse().map((event) => this.item(event)));
  }

  add(event) {
    const list = byId("events");
    list.prepend(this.item(event));
    if (list.childElementCount > EVENTS_MAX) list.lastElementChild.remove();
  }

  item(event) {
    const mark = make("i", "", EVENT_SYMBOLS[event.kind] ?? "▸");
    mark.ariaHidden = "true";
    const item = make("li", "event", make("time", "", seconds(Math.max(0, event.at_s))), mark, make("span", "", event.text));
    item.dataset.kind = event.kind;
    return item;
  }
}

/** One anomaly at a time; it stays long enough to be read, or until the reader moves on. */
export class Story {
  constructor() {
    this.stories = [];
    this.at = -1;
    this.shownAt = -Infinity;
    this.held = false;
    this.preferred = null;
    byId("story-older").addEventListener("click", () => this.browse(-1));
    byId("story-newer").addEventListener("click", () => this.browse(1));
    byId("story-hold").addEventListener("click", () => this.hold(!this.held));
    this.show();
  }

  reset(stories) {
    this.stories = stories.slice(-STORIES_MAX);
    this.at = this.stories.length - 1;
    this.hold(false);
    this.show();
  }

  /** The machine that was worn out is told as soon as it alerts. */
  prefer(machine) {
    this.preferred = machine;
  }

  add(story) {
    this.stories.push(story);
    if (this.stories.length > STORIES_MAX) {
      this.stories.shift();
      if (this.at > 0) this.at -= 1;
    }
    const awaited = story.number === this.preferred;
    const overdue = performance.now() - this.shownAt >= STORY_SHOWN_MS;
    const fuller = this.at >= 0 && isComplete(story) && !isComplete(this.stories[this.at]);
    if (!this.held && (awaited || overdue || fuller || this.at < 0)) {
      this.at = this.stories.length - 1;
      if (awaited) this.preferred = null;
      this.show();
    } else {
      this.showBrowsing();
    }
  }

  browse(step) {
    const next = this.at + step;
    if (next < 0 || next >= this.stories.length) return;
    this.at = next;
    this.hold(true);
    this.show();
  }

  hold(held) {
    this.held = held;
    byId("story-hold").ariaPressed = String(held);
  }

  showBrowsing() {
    byId("story-older").disabled = this.at <= 0;
    byId("story-newer").disabled = this.at >= this.stories.length - 1;
    byId("story-hold").disabled = this.at < 0;
  }

  show() {
    this.showBrowsing();
    const story = this.stories[this.at];
    if (!story) {
      setText(byId("story-summary"), "");
      byId("story").replaceChildren(make("li", "empty", "The first anomaly is yet to come."));
      return;
    }
    this.shownAt = performance.now();
    setText(byId("story-summary"), `${story.machine}, ${ms(story.alert_ms - story.sensor_ms)} in all`);
    byId("story").replaceChildren(...storySteps(story).map(storyStep));
  }
}

/** A busy node may not have told in time where in the log the records lie. */
function isComplete(story) {
  return story.source.entry !== null && story.alert.entry !== null;
}

/** The stations of a reading; `at` is when it was there, in ms since the epoch, or null where nobody took the time. */
function storySteps(story) {
  const entry = (place) => (place.entry === null ? "entry not known" : `entry ${count(place.entry)}`);
  const measured = [
    story.temperature === null ? null : `${story.temperature.toFixed(1)} °C`,
    story.vibration === null ? null : `${story.vibration.toFixed(2)} mm/s`,
  ].filter(Boolean);
  const model = story.model ? `model generation ${story.model.generation}, ${digest(story.model.digest)}` : "rules, no model";
  const cursor = story.verdict ? `cursor ${count(story.verdict.from)} to ${count(story.verdict.to)}` : "cursor moved";
  return [
    { title: "Sensor", at: story.sensor_ms, lines: [`${story.machine}, seq ${count(story.seq)}`, measured.join(", ")] },
    { title: "Edge", at: story.arrived_ms, lines: ["arrived", "acknowledged once committed"] },
    {
      title: "Log",
      at: story.source.committed_ms,
      lines: [`${story.source.topic}[${story.source.partition}] @ ${count(story.source.offset)}`, entry(story.source)],
    },
    {
      title: "Verdict, one entry",
      at: story.alert.committed_ms,
      lines: [
        `score ${story.score.toFixed(2)}, ${model}`,
        `${entry(story.alert)}: ${cursor}, ${story.alert.topic}[${story.alert.partition}] @ ${count(story.alert.offset)}`,
      ],
      wide: true,
    },
    { title: "Alert", at: story.alert_ms, lines: ["read by the consumer", story.reason] },
  ];
}

function storyStep(step, at, steps) {
  const before = steps.slice(0, at).findLast((earlier) => earlier.at !== null);
  // Clocks of two processes: a step may seem to come a moment before the one it follows.
  const gap = before && step.at !== null ? `+${Math.max(0, Math.round(step.at - before.at))} ms` : at === 0 ? "0 ms" : "";
  const item = make("li", step.wide ? "step wide" : "step", make("time", "", gap), make("b", "", step.title));
  for (const line of step.lines) if (line) item.append(make("span", "", line));
  item.title = step.lines.filter(Boolean).join("\n");
  return item;
}

/** An answer that is shown for some seconds. */
export function toast({ ok, message, hint }) {
  const mark = make("i", "", ok ? "✓" : "✕");
  mark.ariaHidden = "true";
  const item = make("p", ok ? "toast" : "toast refused", mark, make("span", "", message, hint ? make("small", "", hint) : null));
  const box = byId("toasts");
  box.append(item);
  while (box.childElementCount > TOASTS_MAX) box.firstElementChild.remove();
  setTimeout(() => item.remove(), TOAST_SHOWN_MS);
}

/** The verdict on the whole run. */
export class Report {
  constructor() {
    this.dialog = byId("report");
    byId("show-report").addEventListener("click", () => this.open());
  }

  reset(report) {
    byId("show-report").hidden = report === null;
    if (report === null) this.dialog.close();
    else this.show(report);
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
  }

  show(report) {
    this.dialog.dataset.ok = report.ok;
    const broken = report.promises.filter((promise) => !promise.held).length;
    setText(byId("report-title"), report.ok ? "✓ Every promise held" : `✕ ${broken} of ${report.promises.length} promises broken`);
    setText(
      byId("report-summary"),
      `${count(report.machines)} machines on ${report.nodes} nodes for ${seconds(report.duration_s)}, seed ${report.seed}. ` +
        "Judged by the clients' acknowledgements and what a stock Kafka client read back.",
    );
    const { anomalies, latency_ms: latency, failover, swap } = report;
    const figures = [
      [`acknowledged of ${count(report.readings_sent)} readings`, count(report.readings_acked)],
      ["verdicts", count(report.verdicts)],
      ["lost", count(report.lost)],
      ["duplicates", count(report.duplicates)],
      ["by the old model after the swap", count(report.stale_after_swap)],
      ["anomalies reported", count(anomalies.reported)],
      ["precision", percent(anomalies.precision)],
      ["recall", percent(anomalies.recall)],
      ["arrival to verdict, p50", ms(latency.p50)],
      ["p99", ms(latency.p99)],
      ["max", ms(latency.max)],
      ["sensor to alert, p99", ms(latency.alert_p99)],
      [failover.restarted ? "killed, and came back" : "killed", failover.killed ?? "nobody"],
      ["without a leader", ms(failover.leaderless_ms)],
      ["p99 across the failover", ms(latency.p99_across_failover)],
      ["model generation", swap.from === null ? "not swapped" : `${swap.from} to ${swap.to}`],
    ];
    byId("report-figures").replaceChildren(
      ...figures.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))),
    );
    byId("report-promises").replaceChildren(
      ...report.promises.map((promise) => promiseItem(promise.text, promise.held ? "held" : "broken", promise.id)),
    );
    byId("show-report").hidden = false;
    this.open();
  }
}
