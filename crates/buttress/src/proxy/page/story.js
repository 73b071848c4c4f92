// A decision record, drawn: one line of a list, and the whole story.

import { make, ms } from "./format.js";

/** A clock time of a record, to the second; the whole date stands in its title. */
function when(record) {
  const iso = new Date(record.at_ms).toISOString();
  const time = make("time", "", iso.slice(11, 19));
  time.dateTime = iso;
  time.title = iso;
  return time;
}

export function address(id) {
  return `/explain/${encodeURIComponent(id)}`;
}

/** Whether somebody has to look at it: told by a sign as well as by colour. */
function badge(record) {
  const bad = record.status >= 400 || (record.grpc_status ?? 0) > 0;
  const grpc = record.grpc_status ? ` (gRPC ${record.grpc_status})` : "";
  return make("b", bad ? "bad" : "good", `${bad ? "✕" : "✓"} ${record.status}${grpc}`);
}

/** A line that leads to the whole story; takes a record, or what a list says of one. */
export function line(record) {
  const [code, says] = record.outcome ? [record.outcome.code, record.outcome.says] : [record.code, record.says];
  const link = make("a", "line",
    when(record), badge(record),
    make("span", "what", record.method ? `${record.method} ${record.path}` : "(not read)"),
    make("code", "", code), make("span", "says", says));
  link.href = address(record.id);
  return make("li", "", link);
}

function fact(name, ...value) {
  return [make("dt", "", name), make("dd", "", ...value)];
}

/** A decision: its sentence, its code, and what would have passed. */
function decision(name, told) {
  if (!told) return null;
  return make("li", "decision",
    make("span", "name", name), make("span", "says", told.says), make("code", "", told.code),
    told.would_pass ? make("span", "pass", `would have passed: ${told.would_pass}`) : null);
}

/** What a field was, as far as a record may say. */
function field([name, held]) {
  if (held.withheld) return `${name}: withheld, it may be a credential`;
  if (held.values.length === 0) return `${name}: absent`;
  return `${name}: ${held.values.map((value) => JSON.stringify(value)).join(", ")}${held.cut ? " …" : ""}`;
}

function attempt(one, at) {
  const how = one.problem || (one.grpc_status === null ? `answered ${one.status}` : `answered gRPC status ${one.grpc_status}`);
  const bad = one.problem !== "" || one.kind !== "answered";
  const fate = one.problem === "" ? null : make("p", "place", one.delivered
    ? "The upstream may have seen the request." : "Nothing of the request reached the upstream.");
  return make("li", "attempt",
    make("h3", "", `${at + 1}. ${one.endpoint}`, make("span", "", one.hedge ? " sent beside a slow one" : ""),
      make("b", bad ? "bad" : "good", ` ${bad ? "✕" : "✓"} ${how}`), make("span", "", ` after ${ms(one.took_ms)}`)),
    fate,
    make("ul", "decisions", decision("chosen", one.picked), decision("breaker", one.breaker), decision("then", one.next)));
}

function panel(title, ...children) {
  return make("section", "panel", make("h2", "", title), ...children);
}

/** The whole story of a record. */
export function story(record) {
  const passed = record.outcome.would_pass
    ? make("p", "pass", make("b", "", "It would have passed with: "), `${record.outcome.would_pass}.`) : null;
  const head = make("section", "panel verdict",
    make("p", "request", badge(record), " ", make("span", "what", record.method ? `${record.method} ${record.path}` : "a request that could not be read")),
    make("p", "sentence", record.outcome.says),
    passed,
    make("p", "place", make("code", "", record.outcome.code), ` – buttress explain ${record.outcome.code} says what the code means`));
  const facts = make("dl", "facts-list",
    ...fact("request id", make("code", "", record.id)),
    ...fact("answered", `${new Date(record.at_ms).toISOString().replace("T", " ").slice(0, 23)} UTC, after ${ms(record.took_ms)}`),
    ...fact("client", record.caller ? `${record.client}, known as ${record.caller}` : record.client),
    ...(record.listener ? fact("listener", record.listener) : []),
    ...(record.authority ? fact("host", record.authority) : []),
    ...fact("route", ...(record.route ? [make("b", "", record.route), ` by ${record.matched}`] : ["none takes it"])),
    ...(record.backend ? fact("backend", record.backend + (record.point === null || record.point === undefined ? "" : ` (weights were asked at ${record.point.toFixed(4)} of 1)`)) : []),
    ...(record.deadline_ms > 0 ? fact("deadline", `${ms(record.deadline_ms)}, of which ${ms(record.deadline_left_ms)} were left`) : []),
    ...Object.entries(record.fields ?? {}).flatMap((held) => fact("field", field(held))));
  const command = make("code", "command", `buttress explain ${record.id} --admin ${location.host}`);
  const attempts = record.attempts.length > 0
    ? make("ol", "attempts", ...record.attempts.map(attempt))
    : make("p", "empty", "It was sent nowhere.");
  const state = record.state.length > 0
    ? make("ul", "state", ...record.state.map((says) => make("li", "", says))) : null;
  const admission = record.admission.length > 0
    ? make("ul", "decisions", ...record.admission.map((told) => decision("let in", told))) : null;
  return [
    head,
    panel("The request", facts, make("p", "place", "in a terminal: ", command)),
    panel(`Attempts: ${record.attempts.length}`, admission, attempts),
    ...(state ? [panel("How its policies stood then", state)] : []),
  ];
}
