#!/usr/bin/env bash
# Clients of every kind at once, polite and rude, for a while: nothing may hang, grow or be held, and no answer be wrong.
# Usage: scripts/stress_test.sh [--duration SECONDS] [--concurrency N] [--port N]
# Uses the server on that port; if there is none, builds one and starts it with a KV cache that is full within a minute, so
# that blocks are evicted and sequences preempted, and memory stops growing when it should.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

duration=30
concurrency=16
port=1234
kv_memory_mb=192
max_seqs=16
ready_seconds=60
target=${CARGO_TARGET_DIR:-$repository/target}
log="$repository/.cache/stress-server.log"
while [ $# -gt 0 ]; do
  case "$1" in
    --duration) duration=${2:?--duration needs seconds} && shift 2 ;;
    --concurrency) concurrency=${2:?--concurrency needs a number} && shift 2 ;;
    --port) port=${2:?--port needs a number} && shift 2 ;;
    *) die "unknown argument '$1'; usage: scripts/stress_test.sh [--duration SECONDS] [--concurrency N] [--port N]" ;;
  esac
done

is_ready() { curl -fsS --noproxy '*' -o /dev/null "http://127.0.0.1:$port/ready" 2>/dev/null; }

start_server() {
  require_build_tools
  (cd "$repository" && cargo build --release --locked --package mistralrs-server)
  "$repository/scripts/get_models.sh" "$repository/models"
  mkdir -p "$(dirname "$log")"
  "$target/release/mistralrs-server" --port "$port" --pa-memory-mb "$kv_memory_mb" --max-seqs "$max_seqs" --log warn \
    gguf -m "$repository/models" -f SmolLM2-135M-Instruct.Q4_1.gguf >"$log" 2>&1 &
  server=$!
  trap 'kill "$server" && wait "$server"' EXIT
  for _ in $(seq $((ready_seconds * 10))); do
    ! is_ready || return 0
    kill -0 "$server" 2>/dev/null || die "the server ended at once; see $log"
    sleep 0.1
  done
  die "the server is not ready after $ready_seconds s; see $log"
}

is_ready || start_server
python3 "$repository/scripts/stress" --port "$port" --duration "$duration" --concurrency "$concurrency"
