#!/usr/bin/env bash
# From a fresh Debian with Rust to a running server in one command: builds, fetches a small model, starts the server
# with the MCP gateway in front of a filesystem server, and shows each part at work. Running it again does no harm.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

port=${QUICKSTART_PORT:-1234}
mcp_port=${QUICKSTART_MCP_PORT:-4322}
key=${QUICKSTART_KEY:-sk-abc123}
state="$repository/.cache/quickstart"
pid_file="$state/server.pid"
log_file="$state/server.log"
demo="$state/demo"
target=${CARGO_TARGET_DIR:-$repository/target}
binary=$(readlink -m "$target/release/mistralrs-server")
filesystem_version=2026.8.31
ready_seconds=60
stop_seconds=45

usage() {
  cat <<TEXT
Usage: scripts/quickstart.sh [--port N] [--mcp-port N] [--stop]

  --port N      the OpenAI API's port (default 1234, or QUICKSTART_PORT)
  --mcp-port N  the MCP endpoint's port (default 4322, or QUICKSTART_MCP_PORT)
  --stop        ends the server that this script started

The MCP endpoint's key is '$key'; QUICKSTART_KEY sets another one.
TEXT
}

# The pid of our running server, or nothing. A pid of another program that took the number does not count.
running_pid() {
  local pid
  pid=$(cat "$pid_file" 2>/dev/null) || return 0
  case "$(readlink "/proc/$pid/exe" 2>/dev/null)" in
    "$binary" | "$binary (deleted)") printf '%s' "$pid" ;;
  esac
}

stop() {
  local pid
  pid=$(running_pid)
  if [ -z "$pid" ]; then
    echo "No server of this script is running."
  else
    kill -TERM "$pid"
    for _ in $(seq $((stop_seconds * 10))); do
      [ -n "$(running_pid)" ] || break
      sleep 0.1
    done
    if [ -n "$(running_pid)" ]; then
      warn "the server did not end within $stop_seconds s of SIGTERM; killing it"
      kill -KILL "$pid"
    fi
    echo "Stopped the server (pid $pid)."
  fi
  rm -f "$pid_file"
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

install_and_build() {
  require_build_tools
  require_python
  require_npm
  say "Building the server (a first release build takes several minutes)"
  (cd "$repository" && cargo build --release --locked --package mistralrs-server)
  say "Fetching the model SmolLM2-135M-Instruct (98 MB, once)"
  "$repository/scripts/get_models.sh" "$repository/models"
  if [ ! -f "$state/node/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js" ]; then
    say "Installing the MCP filesystem server"
    mkdir -p "$state/node"
    npm install --prefix "$state/node" --ignore-scripts --no-audit --no-fund --loglevel=error \
      "@modelcontextprotocol/server-filesystem@$filesystem_version"
  fi
}

write_configuration() {
  mkdir -p "$demo"
  echo "Hello from a file: the gateway read this through the MCP filesystem server." >"$demo/hello.txt"
  cat >"$state/mistralrs.toml" <<TOML
[[mcp_client.servers]]
name = "filesystem"
command = "node"
args = ["$state/node/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js", "$demo"]
TOML
}

start() {
  local each
  for each in "$port" "$mcp_port"; do
    port_is_free "$each" || die "port $each is in use by another program; choose others, for example:
  scripts/quickstart.sh --port $((port + 10000)) --mcp-port $((mcp_port + 10000))"
  done
  say "Starting the server"
  setsid "$binary" --port "$port" --http-mcp-port "$mcp_port" --http-mcp-auth-key "$key" --config "$state/mistralrs.toml" \
    gguf -m "$repository/models" -f SmolLM2-135M-Instruct.Q4_1.gguf >"$log_file" 2>&1 </dev/null &
  echo $! >"$pid_file"
  printf '%s %s\n' "$port" "$mcp_port" >"$state/ports"
  for _ in $(seq $((ready_seconds * 10))); do
    if curl -fsS --noproxy '*' -o /dev/null "http://127.0.0.1:$port/ready" 2>/dev/null; then
      return 0
    fi
    if ! kill -0 "$(cat "$pid_file")" 2>/dev/null; then
      tail -n 20 "$log_file" >&2
      rm -f "$pid_file"
      die "the server ended at once; its last words are above, all of them in $log_file"
    fi
    sleep 0.1
  done
  tail -n 20 "$log_file" >&2
  die "the server is not ready after $ready_seconds s; see $log_file, and end it with scripts/quickstart.sh --stop"
}

# json EXPRESSION: evaluates a Python expression over the JSON document on stdin, called `d`.
json() { python3 -c "import json, sys; d = json.load(sys.stdin); print($1)"; }

rpc() {
  curl -fsS --noproxy '*' -X POST "http://127.0.0.1:$mcp_port/mcp/stream" \
    -H "Authorization: Bearer $key" -H "Content-Type: application/json" -d "$1"
}

show() {
  say "Chat: POST /v1/chat/completions"
  curl -fsS --noproxy '*' "http://127.0.0.1:$port/v1/chat/completions" -H "Content-Type: application/json" \
    -d '{"model": "default", "messages": [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}], "max_tokens": 32, "temperature": 0}' |
    json "d['choices'][0]['message']['content']"

  say "MCP: tools/list"
  local list names
  list='{"jsonrpc": "2.0", "method": "tools/list", "id": "1"}'
  # The filesystem server is a Node process of its own and needs a moment after the model is ready.
  for _ in $(seq 100); do
    names=$(rpc "$list" | json "'\n'.join(tool['name'] for tool in d['result']['tools'])")
    grep -q '^filesystem::' <<<"$names" && break
    sleep 0.2
  done
  echo "$names"

  say "MCP: tools/call filesystem::read_file"
  rpc "{\"jsonrpc\": \"2.0\", \"method\": \"tools/call\", \"id\": \"2\", \"params\": {\"name\": \"filesystem::read_file\", \"arguments\": {\"path\": \"$demo/hello.txt\"}}}" |
    json "d['result']['content'][0]['text'].strip()"

  say "Metrics: GET /metrics, a few lines of many"
  local metrics
  metrics=$(curl -fsS --noproxy '*' "http://127.0.0.1:$port/metrics")
  grep -E '^(mistralrs_tokens_processed_total|mistralrs_kv_cache_blocks_total|mistralrs_tool_forwarded_calls_total|mistralrs_lock_acquisition_count|http_mcp_requests_total)' <<<"$metrics" | head -n 12 || true
}

explain() {
  cat <<TEXT

The server is running (pid $(cat "$pid_file"), log $log_file).

  OpenAI API    http://127.0.0.1:$port/v1          any OpenAI client; base_url is this, api_key anything
  Metrics       http://127.0.0.1:$port/metrics     point Prometheus here: docs/guides/prometheus.md
  MCP endpoint  http://127.0.0.1:$mcp_port/mcp/stream  key $key: docs/guides/mcp-clients.md

Try:

  curl http://127.0.0.1:$port/v1/chat/completions -H "Content-Type: application/json" \\
    -d '{"model": "default", "messages": [{"role": "user", "content": "Tell me a joke"}], "stream": true}'

  curl -X POST http://127.0.0.1:$mcp_port/mcp/stream -H "Authorization: Bearer $key" \\
    -H "Content-Type: application/json" -d '{"jsonrpc":"2.0","method":"tools/list","id":"1"}'

Stop it with: scripts/quickstart.sh --stop
TEXT
}

while [ $# -gt 0 ]; do
  case "$1" in
    --port) port=${2:?--port needs a number} && shift 2 ;;
    --mcp-port) mcp_port=${2:?--mcp-port needs a number} && shift 2 ;;
    --stop) stop && exit 0 ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && die "unknown argument '$1'" ;;
  esac
done

mkdir -p "$state"
if [ -n "$(running_pid)" ]; then
  read -r port mcp_port <"$state/ports"
  say "The server of an earlier run is still running on ports $port and $mcp_port; using it"
else
  install_and_build
  write_configuration
  start
fi
show
explain
