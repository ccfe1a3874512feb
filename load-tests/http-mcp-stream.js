// Does the MCP endpoint keep its latency when many clients ask at once? Offers a fixed rate, so that a slow server shows
// as waiting requests and not as a lower rate.
//
//   k6 run load-tests/http-mcp-stream.js -e URL=http://localhost:4322/mcp/stream -e KEY=sk-abc123 -e RATE=500 -e SECONDS=30
//
// k6 reads a body to its end before it looks at it: times are those of whole answers, not of single events.

import { check } from "k6";
import http from "k6/http";
import { Rate } from "k6/metrics";

const url = __ENV.URL || "http://localhost:4322/mcp/stream";
const headers = { "Content-Type": "application/json" };
if (__ENV.KEY) {
  headers.Authorization = `Bearer ${__ENV.KEY}`;
}
const failed = new Rate("failed_calls");

export const options = {
  scenarios: {
    list: {
      executor: "constant-arrival-rate",
      rate: Number(__ENV.RATE || 500),
      timeUnit: "1s",
      duration: `${__ENV.SECONDS || 30}s`,
      preAllocatedVUs: 50,
      maxVUs: 500,
    },
  },
  thresholds: {
    failed_calls: ["rate<0.001"],
    http_req_duration: ["p(99)<100"],
    dropped_iterations: ["count==0"],
  },
};

export default function () {
  const body = JSON.stringify({ jsonrpc: "2.0", id: `${__VU}-${__ITER}`, method: "tools/list" });
  const answer = http.post(url, body, { headers });
  const good = check(answer, {
    "is 200": (a) => a.status === 200,
    "answers this request": (a) => a.json("id") === `${__VU}-${__ITER}`,
    "lists tools": (a) => Array.isArray(a.json("result.tools")),
  });
  failed.add(!good);
}
