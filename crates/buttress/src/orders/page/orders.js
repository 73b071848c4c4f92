// The live page of the orders: two sides beside each other, drawn from one snapshot twice a second.

import { follow } from "./connection.js";
import { byId, count, drawer, fitted, make, ms, setText, themeColor } from "./format.js";

const SIDES = ["without", "with"];
const PARTS = ["gateway", "order", "coordinator", "inventory", "payment", "shipping"];
let now = null;

function number(title) {
  const value = make("b", "", "–");
  const note = make("p", "", "");
  return { box: make("div", "number", make("h2", "", title), value, note), value, note };
}

const panels = Object.fromEntries(SIDES.map((side) => {
  const numbers = { good: number("Good orders/s"), p99: number("Sent to ended, p99"), amplification: number("Amplification"), open: number("Open orders") };
  const canvas = make("canvas", "chart");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Orders by the second in which they were sent, and what became of them");
  const legend = make("p", "legend", make("i", "good", "good: within 5 s"), make("i", "late", "late"), make("i", "failed", "failed"), make("i", "fault", "something is wrong"));
  const body = make("tbody", "");
  const columns = side === "with" ? ["Part", "State", "Requests/s", "Queue", "Breaker", "Retries"] : ["Part", "State", "Requests/s", "Queue"];
  const table = make("table", "rows", make("thead", "", make("tr", "", ...columns.map((name) => make("th", "", name)))), body);
  byId(side).append(
    make("div", "numbers", ...Object.values(numbers).map((n) => n.box)),
    make("div", "panel", make("h2", "", "What became of the orders of each second"), canvas, legend),
    make("div", "panel", table));
  return [side, { numbers, body, draw: drawer(canvas, () => chart(canvas, side)) }];
}));

function chart(canvas, side) {
  const fit = fitted(canvas);
  if (fit === null || now === null || !now.sides[side]) return;
  const { context, width, height } = fit;
  const seconds = now.sides[side].seconds;
  const all = Math.max(1, Math.ceil(now.duration_s));
  const top = Math.max(1, ...SIDES.flatMap((s) => (now.sides[s]?.seconds ?? []).map((second) => second.sent)), now.rate);
  const x = (s) => (s / all) * width;
  const plot = height - 16;
  context.font = "11px system-ui, sans-serif";
  for (const window of now.windows) {
    context.fillStyle = themeColor("edge");
    context.fillRect(x(window.from_s), 0, x(window.to_s) - x(window.from_s), height);
    context.fillStyle = themeColor("text");
    context.fillText(window.what.split(",")[0], x(window.from_s) + 3, height - 4, Math.max(20, width - x(window.from_s) - 6));
  }
  const wide = Math.max(1, x(1) - 1);
  seconds.forEach((second, at) => {
    let base = plot;
    for (const [kind, color] of [["good", "good"], ["late", "series-d"], ["failed", "bad"]]) {
      const high = (second[kind] / top) * (plot - 14);
      context.fillStyle = themeColor(color);
      context.fillRect(x(at), base - high, wide, high);
      base -= high;
    }
  });
  context.strokeStyle = themeColor("edge");
  context.beginPath();
  context.moveTo(0, plot + 0.5);
  context.lineTo(width, plot + 0.5);
  context.stroke();
}

function drawSide(side) {
  const view = now.sides[side];
  if (!view) return;
  const { numbers, body, draw } = panels[side];
  setText(numbers.good.value, view.goodput.toFixed(1));
  setText(numbers.good.note, `${count(view.good)} good, ${count(view.late)} late, ${count(view.failed)} failed`);
  setText(numbers.p99.value, ms(view.p99_ms));
  setText(numbers.p99.note, `${count(view.completed)} completed, ${count(view.compensated)} compensated`);
  setText(numbers.amplification.value, view.calls > 0 ? `${(view.attempts / view.calls).toFixed(2)}×` : "–");
  setText(numbers.amplification.note, `${count(view.attempts)} requests for ${count(view.calls)} calls`);
  setText(numbers.open.value, count(view.open));
  setText(numbers.open.note, `of ${count(view.placed)} placed`);
  body.replaceChildren(...PARTS.map((role) => {
    const part = view.parts[role] ?? {};
    const cell = (text, name) => make("td", name ?? "", text);
    const state = !part.up ? ["✕ down", "bad"] : part.fault ? [`! ${part.fault}`, "bad"] : ["✓ up", "good"];
    const more = [];
    if (side === "with") {
      const page = now.proxies[role];
      const link = page ? make("a", "", part.breaker ?? "–") : null;
      if (link) link.href = page;
      more.push(make("td", part.breaker && part.breaker !== "closed" ? "bad" : "", link ?? "–"), cell(part.retries === null || part.retries === undefined ? "–" : count(part.retries)));
    }
    return make("tr", "", cell(role), cell(...state), cell(count(part.rate)), cell(count(part.waiting), part.waiting > 20 ? "bad" : ""), ...more);
  }));
  draw();
}

function drawReport(report) {
  byId("report").hidden = false;
  setText(byId("verdict"), report.ok ? "every promise held" : "a promise was broken");
  const row = (name, pick) => make("tr", "", make("td", "", name), make("td", "", pick(report.without)), make("td", "", pick(report.with)));
  byId("figures").replaceChildren(
    make("tr", "", make("th", "", ""), make("th", "", "without"), make("th", "", "with")),
    row("orders sent", (s) => count(s.sent)),
    row("good within 5 s, a second", (s) => s.figures.goodput.toFixed(2)),
    row("too late", (s) => count(s.late)),
    row("failed or turned away", (s) => count(s.failed)),
    row("sent to ended, p50", (s) => ms(s.p50_ms)),
    row("sent to ended, p99", (s) => ms(s.figures.p99_ms)),
    row("requests sent for calls wanted", (s) => `${count(s.attempts)} for ${count(s.calls)}`),
    row("amplification", (s) => `${s.figures.amplification.toFixed(2)}×`),
    ...report.faults.map((fault, at) => row(`back after ${fault.what}`, (s) => (s.recovery_s[at] === null ? "not" : `${s.recovery_s[at].toFixed(1)} s`))),
    row("completed", (s) => count(s.orders.completed)),
    row("compensated", (s) => count(s.orders.compensated)),
    row("stuck", (s) => count(s.orders.stuck)),
    row("inconsistent", (s) => count(s.orders.inconsistent)));
  byId("promises").replaceChildren(...report.promises.map((promise) =>
    make("li", "", make("b", promise.held ? "good" : "bad", promise.held ? "✓ held" : "✕ broken"), `${promise.text} `, make("code", "", promise.id))));
}

let reported = false;

function draw(snapshot) {
  now = snapshot;
  document.body.dataset.phase = now.phase;
  setText(byId("phase"), now.phase);
  setText(byId("facts"), `${now.rate} orders a second to each side, seed ${now.seed}${now.leader ? `, ${now.leader} leads the log` : ", no leader"}`);
  setText(byId("clock"), `${now.elapsed_s.toFixed(1)} s`);
  byId("progress").value = now.duration_s > 0 ? Math.min(1, now.elapsed_s / now.duration_s) : 0;
  SIDES.forEach(drawSide);
  const list = byId("events");
  if (now.events.length > 0 && list.dataset.shown !== `${now.events.length}`) {
    list.dataset.shown = `${now.events.length}`;
    list.replaceChildren(...now.events.toReversed().map((event) =>
      make("li", "", make("time", "", `${event.at_s.toFixed(1)} s`), make("b", "", event.kind), make("span", "", event.text))));
  }
  if (now.report && !reported) {
    reported = true;
    drawReport(now.report);
  }
}

follow(draw, (state) => {
  const banner = byId("banner");
  const ended = now !== null && (now.phase === "done" || now.phase === "failed");
  banner.hidden = state === "open";
  setText(banner, state === "open" ? "" : ended ? "The demo has ended; this is its last picture." : "The demo does not answer; this page tries again.");
  if (state !== "open" && now === null) setText(byId("phase"), "gone");
});
