// The live page of a proxy: a snapshot every second, drawn as figures, endpoints and the newest records.

import { follow } from "./connection.js";
import { byId, count, make, ms, percent, setText } from "./format.js";

const WINDOW = 10;
const history = [];
let open = new Set();

function rate(now, then, pick) {
  const seconds = (now.uptime_ms - then.uptime_ms) / 1000;
  return seconds > 0 ? (pick(now) - pick(then)) / seconds : null;
}

/** The bound of the bucket in which this share of the requests between two snapshots ended. */
function quantile(now, then, pick, share) {
  const counts = pick(now).durations.map((bucket, at) => bucket.count - pick(then).durations[at].count);
  const all = counts.reduce((sum, n) => sum + n, 0);
  if (all === 0) return null;
  let seen = 0;
  const at = counts.findIndex((n) => (seen += n) >= all * share);
  return pick(now).durations[Math.min(at, counts.length - 2)].le_ms;
}

const done = (golden) => golden.by_class.reduce((sum, n) => sum + n, 0);
const failed = (golden) => golden.by_class[4];

function draw(now) {
  history.push(now);
  if (history.length > WINDOW + 1) history.shift();
  const then = history[0];
  const before = history[history.length - 2] ?? now;
  setText(byId("facts"), `${now.listen} to ${now.endpoints.map((e) => e.endpoint).join(", ")}`);
  setText(byId("rate"), count(rate(now, before, (s) => done(s.route))));
  setText(byId("total"), `${count(done(now.route))} answered`);
  const all = done(now.route) - done(then.route);
  setText(byId("good"), all > 0 ? percent(1 - (failed(now.route) - failed(then.route)) / all) : "–");
  setText(byId("p50"), ms(quantile(now, then, (s) => s.route, 0.5)));
  setText(byId("p99"), ms(quantile(now, then, (s) => s.route, 0.99)));
  setText(byId("running"), count(now.route.running));
  setText(byId("retries"), `${count(now.retries)} retries, ${count(now.connections)} connections`);
  setText(byId("route"), now.bare ? "bare: no policies"
    : `breaker ${now.breaker}, ${now.limit} calls at once, retry budget ${now.budget.retries} of ${now.budget.allowed}`);
  byId("endpoints").replaceChildren(...now.endpoints.map((endpoint, at) => {
    const golden = (s) => s.endpoints[at].golden;
    const ended = done(golden(now)) - done(golden(then));
    const bad = now.endpoints[at].failures - then.endpoints[at].failures;
    const cell = (text, name) => make("td", name ?? "", text);
    const state = endpoint.state;
    return make("tr", "",
      cell(endpoint.endpoint),
      cell(`${state === "in" ? "✓" : "✕"} ${state}`, state === "in" ? "good" : "bad"),
      cell(count(rate(now, before, (s) => done(s.endpoints[at].golden)))),
      cell(ended + bad > 0 ? percent(bad / Math.max(ended, bad)) : "–", bad > 0 ? "bad" : ""),
      cell(count(endpoint.golden.running)),
      cell(ms(quantile(now, then, golden, 0.5))),
      cell(ms(quantile(now, then, golden, 0.99))));
  }));
  drawRecords(now.records);
}

function drawRecords(records) {
  const list = byId("records");
  if (records.length === 0) return;
  const shown = records.map((r) => r.id).join();
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...records.map((record) => {
    const time = new Date(record.at_ms).toISOString().slice(11, 19);
    const story = record.attempts.map((attempt, at) => {
      const how = attempt.problem || `answered ${attempt.status}`;
      const next = attempt.next ? `; ${attempt.next.says} [${attempt.next.code}]` : "";
      return make("p", "", `attempt ${at + 1}: ${attempt.endpoint} ${how}, after ${ms(attempt.took_ms)}${next}`);
    });
    const pass = record.outcome.would_pass ? make("p", "", `It would have passed with: ${record.outcome.would_pass}.`) : null;
    const details = make("details", "",
      make("summary", "",
        make("span", "", time),
        make("b", record.status >= 500 ? "bad" : "", `${record.status}`),
        make("span", "", `${record.method} ${record.path}`),
        make("code", "", record.outcome.code),
        make("span", "says", record.outcome.says)),
      make("div", "story", ...story, pass, make("code", "", `buttress explain ${record.id} --admin ${location.host}`)));
    details.open = open.has(record.id);
    details.addEventListener("toggle", () => (details.open ? open.add(record.id) : open.delete(record.id)));
    return make("li", "", details);
  }));
}

follow(draw, (state) => {
  document.body.dataset.phase = state === "open" ? "playing" : "failed";
  setText(byId("phase"), state === "open" ? "live" : "gone");
  const banner = byId("banner");
  banner.hidden = state === "open";
  setText(banner, state === "open" ? "" : "The proxy does not answer; this page tries again.");
});
