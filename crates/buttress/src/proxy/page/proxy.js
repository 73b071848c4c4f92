// The live page of a proxy: a snapshot every second, drawn as figures, endpoints and the newest records.

import { follow } from "./connection.js";
import { byId, count, make, ms, percent, setText } from "./format.js";
import { line } from "./story.js";

const WINDOW = 10;
const history = [];

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

/** Every route's figures together. */
function total(snapshot) {
  const zero = { by_class: [0, 0, 0, 0, 0], durations: [], running: 0 };
  return snapshot.routes.reduce((sum, { golden }) => ({
    by_class: sum.by_class.map((n, at) => n + golden.by_class[at]),
    durations: golden.durations.map((bucket, at) => ({ le_ms: bucket.le_ms, count: bucket.count + (sum.durations[at]?.count ?? 0) })),
    running: sum.running + golden.running,
  }), zero);
}

/** Endpoints of all routes with the words that find the same one in another snapshot. */
function rows(snapshot) {
  return snapshot.routes.flatMap((route) => route.backends.flatMap((backend) => backend.endpoints.map((endpoint) => ({
    key: `${route.route}/${backend.backend}/${endpoint.endpoint}`, route, backend, endpoint,
  }))));
}

function draw(now) {
  history.push(now);
  if (history.length > WINDOW + 1) history.shift();
  const then = history[0];
  const before = history[history.length - 2] ?? now;
  const [all, first] = [total(now), total(then)];
  const routes = now.routes.length === 1 ? `route ${now.routes[0].route}` : `${now.routes.length} routes`;
  const serving = now.listeners.filter((one) => one.state === "serving");
  const at = serving.length === 1 ? serving[0].listen : `${serving.length} listeners`;
  setText(byId("facts"), `${at}, ${routes}, table ${now.generation}`);
  setText(byId("rate"), count(rate(now, before, (s) => done(total(s)))));
  setText(byId("total"), `${count(done(all))} answered`);
  const ended = done(all) - done(first);
  setText(byId("good"), ended > 0 ? percent(1 - (failed(all) - failed(first)) / ended) : "–");
  setText(byId("p50"), ms(quantile(now, then, total, 0.5)));
  setText(byId("p99"), ms(quantile(now, then, total, 0.99)));
  setText(byId("running"), count(all.running));
  setText(byId("retries"), `${count(now.retries)} retries, ${count(now.connections)} connections`);
  drawListeners(now);
  drawBackends(now);
  drawEndpoints(now, before, then);
  drawRecords(now.records);
  const banner = byId("banner");
  banner.hidden = !now.config.problem;
  setText(banner, now.config.problem ? `A change was refused, what was before holds: ${now.config.problem}` : "");
}

function drawListeners(now) {
  byId("listeners").replaceChildren(...now.listeners.map((one) => make("tr", "",
    make("td", "", make("b", "", one.listener), make("span", "place", ` ${one.place}`)),
    make("td", "", one.listen), make("td", "", one.protocol),
    make("td", one.state === "serving" ? "good" : "muted", one.state === "serving" ? "✓ serving" : "◌ draining"),
    make("td", "", count(one.connections)))));
}

function drawBackends(now) {
  byId("backends").replaceChildren(...now.routes.flatMap((route) => route.backends.map((backend) => {
    const weights = route.backends.reduce((sum, other) => sum + other.weight, 0);
    const share = weights > 0 ? percent(backend.weight / weights) : "–";
    const breaker = backend.breaker ?? "off";
    const cell = (text, name) => make("td", name ?? "", text);
    return make("tr", "",
      make("td", "", make("b", "", route.route), make("span", "place", ` ${route.place}`)),
      cell(backend.backend), cell(share),
      cell(`${breaker.includes("open") ? "✕" : "✓"} ${breaker}`, breaker.includes("open") ? "bad" : "good"),
      cell(`${count(backend.running)} of ${count(backend.limit)}`), cell(count(backend.waiting)),
      cell(`${count(backend.budget.retries)} of ${count(backend.budget.allowed)}`));
  })));
}

function drawEndpoints(now, before, then) {
  const known = (snapshot) => new Map(rows(snapshot).map((row) => [row.key, row.endpoint]));
  const [earlier, oldest] = [known(before), known(then)];
  byId("endpoints").replaceChildren(...rows(now).map(({ key, route, backend, endpoint }) => {
    const [last, start] = [earlier.get(key) ?? endpoint, oldest.get(key) ?? endpoint];
    const ended = done(endpoint.golden) - done(start.golden);
    const bad = endpoint.failures - start.failures;
    const cell = (text, name) => make("td", name ?? "", text);
    const state = endpoint.state;
    const seconds = (now.uptime_ms - before.uptime_ms) / 1000;
    const between = (share) => ms(quantile({ golden: endpoint.golden }, { golden: start.golden }, (s) => s.golden, share));
    return make("tr", "",
      cell(endpoint.endpoint), cell(now.routes.length > 1 || route.backends.length > 1 ? `${route.route}/${backend.backend}` : ""),
      cell(`${state === "in" ? "✓" : "✕"} ${state}`, state === "in" ? "good" : "bad"),
      cell(count(seconds > 0 ? (done(endpoint.golden) - done(last.golden)) / seconds : null)),
      cell(ended + bad > 0 ? percent(bad / Math.max(ended, bad)) : "–", bad > 0 ? "bad" : ""),
      cell(count(endpoint.golden.running)), cell(between(0.5)), cell(between(0.99)));
  }));
}

function drawRecords(records) {
  const list = byId("records");
  if (records.length === 0) return;
  const shown = records.map((r) => r.id).join();
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...records.map(line));
}

follow(draw, (state) => {
  document.body.dataset.phase = state === "open" ? "playing" : "failed";
  setText(byId("phase"), state === "open" ? "live" : "gone");
  if (state === "open") return;
  const banner = byId("banner");
  banner.hidden = false;
  setText(banner, "The proxy does not answer; this page tries again.");
});
