// A service that knows nothing of proxies: stock by article, and every so often it cannot say.
//
//     node service.mjs --port 3000 --fail-every 3

import { createServer } from "node:http";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: { port: { type: "string", default: "3000" }, "fail-every": { type: "string", default: "0" } },
});
const failEvery = Number(values["fail-every"]);
let seen = 0;

const server = createServer((request, response) => {
  request.resume().on("end", () => {
    seen += 1;
    const send = (status, value) => {
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify(value));
    };
    if (failEvery > 0 && seen % failEvery === 0) {
      return send(503, { error: "the database did not answer" });
    }
    // What whoever called has left, in milliseconds: a service that takes longer works for nobody.
    const left = request.headers["buttress-timeout-ms"];
    send(200, { article: request.url.split("/").pop(), left: 7, request: seen, time_left_ms: left && Number(left) });
  });
});
server.listen(Number(values.port), "127.0.0.1", () => console.log(`service: 127.0.0.1:${server.address().port}`));
