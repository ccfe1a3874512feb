#!/usr/bin/env bash
# Clients of every kind at once, polite and rude, for a while: nothing may hang, grow or be held, and no answer be wrong.
# Usage: scripts/stress_test.sh [--duration SECONDS] [--concurrency N] [--port N]
# Uses the server on that port, or starts one by scripts/quickstart.sh and stops it afterwards.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

duration=30
concurrency=16
port=1234
while [ $# -gt 0 ]; do
  case "$1" in
    --duration) duration=${2:?--duration needs seconds} && shift 2 ;;
    --concurrency) concurrency=${2:?--concurrency needs a number} && shift 2 ;;
    --port) port=${2:?--port needs a number} && shift 2 ;;
    *) die "unknown argument '$1'; usage: scripts/stress_test.sh [--duration SECONDS] [--concurrency N] [--port N]" ;;
  esac
done

if ! curl -fsS --noproxy '*' -o /dev/null "http://127.0.0.1:$port/ready" 2>/dev/null; then
  "$repository/scripts/quickstart.sh" --port "$port" --mcp-port $((port + 1))
  trap '"$repository/scripts/quickstart.sh" --stop' EXIT
fi
python3 "$repository/scripts/stress" --port "$port" --duration "$duration" --concurrency "$concurrency"
