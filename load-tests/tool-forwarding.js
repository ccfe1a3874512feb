// Do forwarded tool calls stay fast and whole when many clients call at once? The tool should be cheap, so that the
// gateway is what is measured.
//
//   k6 run load-tests/tool-forwarding.js -e URL=http://localhost:4322/mcp/stream -e KEY=sk-abc123 \
//     -e TOOL=filesystem::list_allowed_directories -e ARGUMENTS='{}' -e CLIENTS=16 -e SECONDS=30

import { check } from "k6";
import http from "k6/http";
import { Rate } from "k6/metrics";

const url = __ENV.URL || "http://localhost:4322/mcp/stream";
const tool = __ENV.TOOL || "filesystem::list_allowed_directories";
const toolArguments = JSON.parse(__ENV.ARGUMENTS || "{}");
const headers = { "Content-Type": "application/json" };
if (__ENV.KEY) {
  headers.Authorization = `Bearer ${__ENV.KEY}`;
}
const failed = new Rate("failed_calls");

export const options = {
  scenarios: {
    call: {
      executor: "constant-vus",
      vus: Number(__ENV.CLIENTS || 16),
      duration: `${__ENV.SECONDS || 30}s`,
    },
  },
  thresholds: {
    failed_calls: ["rate<0.001"],
  },
};

export default function () {
  const params = { name: tool, arguments: toolArguments };
  const body = JSON.stringify({ jsonrpc: "2.0", id: `${__VU}-${__ITER}`, method: "tools/call", params });
  const answer = http.post(url, body, { headers });
  const good = check(answer, {
    "is 200": (a) => a.status === 200,
    "answers this request": (a) => a.json("id") === `${__VU}-${__ITER}`,
    "is a result": (a) => a.json("result.isError") !== true && Array.isArray(a.json("result.content")),
  });
  failed.add(!good);
}
