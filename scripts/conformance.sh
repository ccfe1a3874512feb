#!/usr/bin/env bash
# The official MCP conformance suite against the endpoint, whose gateway has the suite's fixture behind it: every scenario
# that a revision requires of a server passes, or stands in scripts/conformance/expected-failures.yaml with its reason.
# Then the gateway as the client of the suite's own servers, in the scenarios that are about what it does as one: not those
# about a user's log-in, which nobody makes here, nor about a user's answers, which are the downstream client's.
# Usage: scripts/conformance.sh [REVISION...]   (default: 2025-11-25 2026-07-28)
# Reports of each scenario's checks go to target/conformance/REVISION.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

tools=${MISTRALRS_TEST_TOOLS:-$repository/.cache/test-tools}

target=${CARGO_TARGET_DIR:-$repository/target}
reports=$target/conformance
ready_seconds=30
server=

stop_server() {
  [ -z "$server" ] || { kill "$server" && wait "$server" || true; }
  server=
}
trap stop_server EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_server ERA PORT: the gateway alone, in front of the fixture in that era. Without a namespace, so that the suite
# finds the names it asks for, and without keys and limits, since it sends none and all at once.
start_server() {
  local era=$1 port=$2
  cat >"$reports/gateway.toml" <<TOML
[[mcp_client.servers]]
name = "fixture"
namespace = ""
command = "python3"
args = ["$repository/scripts/conformance/fixture.py", "$era"]

[http_mcp.rate_limit]
global = 10000
per_ip = 10000
TOML
  "$target/debug/mistralrs-server" --port 0 --http-mcp-port "$port" --config "$reports/gateway.toml" --log warn >"$reports/server-$era.log" 2>&1 &
  server=$!
  for _ in $(seq $((ready_seconds * 10))); do
    ! curl -fsS --noproxy '*' -o /dev/null "http://127.0.0.1:$port/mcp/list" 2>/dev/null || return 0
    kill -0 "$server" 2>/dev/null || die "the server ended at once; see $reports/server-$era.log"
    sleep 0.1
  done
  die "the server does not answer after $ready_seconds s; see $reports/server-$era.log"
}

# run_suite REVISION: fails on a scenario that fails unexpectedly, and on one that passes unexpectedly.
run_suite() {
  local revision=$1 era=legacy port
  [ "$revision" != 2026-07-28 ] || era=modern
  port=$(free_port)
  start_server "$era" "$port"
  "$node" "$suite" server --url "http://localhost:$port/mcp/stream" --requirements "$revision" \
    --expected-failures "$repository/scripts/conformance/expected-failures.yaml" --output-dir "$reports/$revision"
  stop_server
}

# The scenarios of a client, by revision. Those of an extension belong to none and are passed over, unless they are forced.
client_scenarios() {
  case "$1" in
    2025-11-25) echo initialize tools_call sse-retry json-schema-2020-12-preservation auth/client-credentials-basic ;;
    2026-07-28)
      echo tools_call http-invalid-tool-headers json-schema-ref-no-deref json-schema-2020-12-preservation \
        request-metadata http-standard-headers auth/client-credentials-basic
      ;;
  esac
}

run_client() {
  local revision=$1 scenario
  for scenario in $(client_scenarios "$revision"); do
    say "The gateway as a client of $revision: $scenario"
    "$node" "$suite" client --command "python3 $repository/scripts/conformance/client.py $target/debug/mistralrs-server" \
      --scenario "$scenario" --spec-version "$revision" --force --output-dir "$reports/client-$revision"
  done
}

node_packages "$tools/node" "$repository/mistralrs-server/tests/support/node"
suite=$tools/node/node_modules/@modelcontextprotocol/conformance/dist/index.js
node=$(find "$tools"/node/node_modules/node-linux-*/bin/node | head -n 1)
# The tests' build has the server in it; one of its own would build dependencies again with other features.
(cd "$repository" && cargo test --locked --workspace --no-run)
rm -rf "$reports"
mkdir -p "$reports"
[ $# -gt 0 ] || set -- 2025-11-25 2026-07-28
for revision in "$@"; do
  say "Conformance to $revision"
  run_suite "$revision"
  run_client "$revision"
done
