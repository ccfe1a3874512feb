#!/usr/bin/env bash
# This server beside llama.cpp: the same machine, files, threads and prompts, taking turns; a table of medians and ratios.
# Usage: scripts/bench_peers.sh [--model FILE]... [--rounds N] [--concurrency N,N] [--threads N] [--output FILE]
# llama.cpp is built once, native, from the source that PyPI's llama-cpp-python carries. Without --model: SmolLM2-135M in
# Q4_1, and as Q4_0 and Q8_0 made from it. Figures mean something on a machine that does nothing else.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

version=0.3.36
peers="$repository/.cache/peers"
llama="$peers/llama.cpp-$version"
target=${CARGO_TARGET_DIR:-$repository/target}
smollm2="$repository/models/SmolLM2-135M-Instruct.Q4_1.gguf"

models=()
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --model) models+=("${2:?--model needs a GGUF file}") && shift 2 ;;
    --rounds | --concurrency | --threads | --output) options+=("$1" "${2:?$1 needs a value}") && shift 2 ;;
    -h | --help) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument '$1'; see scripts/bench_peers.sh --help" ;;
  esac
done

build_llama() {
  [ ! -x "$llama/bin/llama-server" ] || return 0
  require_python
  apt_install_for cmake cmake
  apt_install_for ninja ninja-build
  say "Building llama.cpp of llama-cpp-python $version (once, about ten minutes on two cores)"
  mkdir -p "$peers"
  python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$peers" "llama-cpp-python==$version"
  tar -xzf "$peers/llama_cpp_python-$version.tar.gz" -C "$peers"
  cmake -S "$peers/llama_cpp_python-$version/vendor/llama.cpp" -B "$llama" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  cmake --build "$llama" --target llama-server llama-bench llama-quantize llama-perplexity
}

# requantized TYPE: SmolLM2 in another type. Right for speed; its quality is that of Q4_1 at best.
requantized() {
  local file="$peers/SmolLM2-135M-Instruct.$1.gguf"
  [ -f "$file" ] || "$llama/bin/llama-quantize" --allow-requantize "$smollm2" "$file" "$1" >"$peers/quantize.log" 2>&1 ||
    die "llama-quantize failed; see $peers/quantize.log"
  printf '%s' "$file"
}

require_build_tools
build_llama
say "Building the server"
(cd "$repository" && cargo build --release --locked --package mistralrs-server)
if [ ${#models[@]} -eq 0 ]; then
  "$repository/scripts/get_models.sh" "$repository/models"
  models=("$smollm2" "$(requantized Q4_0)" "$(requantized Q8_0)")
fi
python3 "$repository/scripts/bench_peers.py" --ours "$target/release/mistralrs-server" --llama "$llama/bin" "${options[@]}" "${models[@]}"
