// Calls the service through its sidecar, and says what became of the calls. There is no policy in here, and no library.
//
//     node client.mjs --to 127.0.0.1:8080 --calls 30

import { randomUUID } from "node:crypto";
import { request } from "node:http";
import { parseArgs } from "node:util";

// What one call may take, all attempts of the sidecar together.
const DEADLINE_MS = 2000;

const { values } = parseArgs({
  options: {
    to: { type: "string", default: "127.0.0.1:8080" },
    calls: { type: "string", default: "30" },
    // POST is not sent twice; with an Idempotency-Key it may be.
    post: { type: "boolean", default: false },
    key: { type: "boolean", default: false },
  },
});

function ask(method, path, fields) {
  return new Promise((resolve, reject) => {
    const headers = { "buttress-timeout-ms": DEADLINE_MS, ...fields };
    const asked = request(`http://${values.to}${path}`, { method, headers, timeout: DEADLINE_MS + 1000 }, (answer) => {
      let body = "";
      answer.setEncoding("utf8").on("data", (text) => (body += text));
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body })).on("error", reject);
    });
    asked.on("timeout", () => asked.destroy(new Error("no answer in time"))).on("error", reject).end();
  });
}

let good = 0;
let last, reason;
const failed = new Map();
try {
  for (let number = 0; number < Number(values.calls); number += 1) {
    const fields = values.key ? { "idempotency-key": randomUUID() } : {};
    const answer = await ask(values.post ? "POST" : "GET", `/stock/${number}`, fields);
    if (answer.status === 200) {
      good += 1;
      continue;
    }
    // The sidecar's own answers carry a code; the service's go through as they are.
    const code = answer.headers["buttress-code"];
    const kind = code ?? `${answer.status} of the service`;
    failed.set(kind, (failed.get(kind) ?? 0) + 1);
    last = answer.headers["x-request-id"];
    if (code) {
      const problem = JSON.parse(answer.body);
      reason = `${problem.detail}; what would pass: ${problem.would_pass ?? "nothing"}`;
    }
  }
} catch (error) {
  console.error(`error: the sidecar cannot be reached: ${error.message}\n\nhint: start it first: buttress proxy --to 127.0.0.1:3000`);
  process.exit(1);
}
const failures = [...failed.values()].reduce((sum, count) => sum + count, 0);
console.log(`${values.calls} calls: ${good} answered well, ${failures} failed`);
for (const [kind, count] of failed) console.log(`  ${count} ${kind}`);
if (reason) console.log(`the last reason: ${reason}`);
if (last) console.log(`next: buttress explain ${last}`);
process.exitCode = failures === 0 ? 0 : 1;
