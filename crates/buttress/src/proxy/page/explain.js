// One request explained (/explain/ID), or the requests that are kept, to choose from (/explain/). What was asked for stands
// in the address, so that it can be passed on.

import { byId, make, setText } from "./format.js";
import { address, line, story } from "./story.js";

/** Codes that the list has had, offered for the next search. */
const seen = new Set();

async function get(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (answer.ok) return body;
  throw Object.assign(new Error(body.message), { status: answer.status, hint: body.hint });
}

function banner(text) {
  byId("banner").hidden = !text;
  setText(byId("banner"), text ?? "");
}

async function routes() {
  const { routes } = await get("/v1/routes");
  const select = byId("route");
  const named = (value, text) => Object.assign(make("option", "", text), { value });
  select.append(named("", "(none takes it)"), ...routes.map(({ name }) => named(name, name)));
}

async function one(id) {
  byId("all").hidden = false;
  byId("find").hidden = true;
  document.title = `${id} – Buttress`;
  try {
    const record = await get(`/v1/requests/${encodeURIComponent(id)}`);
    byId("explained").hidden = false;
    byId("explained").replaceChildren(...story(record));
  } catch (error) {
    const told = error.status === 404
      ? `This proxy keeps no record of request "${id}". Failures are kept, and few successes; another proxy may have had it, or it is too old.`
      : `${error.message}${error.hint ? ` – ${error.hint}` : ""}`;
    banner(told);
    byId("find").hidden = false;
    await list(new URLSearchParams());
  }
}

async function list(asked) {
  byId("list").hidden = false;
  byId("text").value = asked.get("text") ?? "";
  byId("code").value = asked.get("code") ?? "";
  byId("route").value = asked.get("route") ?? "*";
  const { requests } = await get(`/v1/requests?${asked}`);
  for (const { code } of requests) seen.add(code);
  byId("codes").replaceChildren(...[...seen].sort().map((code) => Object.assign(make("option"), { value: code })));
  setText(byId("summary"), requests.length === 0 ? "" : `${requests.length} of those that are kept, newest first`);
  byId("records").replaceChildren(...(requests.length > 0 ? requests.map(line)
    : [make("li", "empty", [...asked].length > 0 ? "None of those that are kept is like that." : "Nothing yet: failures are kept, and few successes.")]));
}

function wanted() {
  const asked = new URLSearchParams();
  const [text, code, route] = ["text", "code", "route"].map((name) => byId(name).value.trim());
  if (text) asked.set("text", text);
  if (code) asked.set("code", code);
  if (route !== "*") asked.set("route", route);
  return asked;
}

byId("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = wanted();
  const text = asked.get("text");
  // Who pastes the id of a request that is kept wants that one.
  if (text && !/\s/.test(text)) {
    const found = await fetch(`/v1/requests/${encodeURIComponent(text)}`).catch(() => null);
    if (found?.ok) {
      location.assign(address(text));
      return;
    }
  }
  location.assign(`/explain/?${asked}`);
});

/** The id in the address; one that is not encoded as addresses are stands for itself. */
function named() {
  const id = location.pathname.slice("/explain/".length);
  try {
    return decodeURIComponent(id);
  } catch {
    return id;
  }
}

async function start() {
  await routes();
  const id = named();
  if (id) await one(id);
  else await list(new URLSearchParams(location.search));
}

start().catch((error) => banner(`The proxy does not answer (${error.message}); load the page again.`));
