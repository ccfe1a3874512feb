#!/usr/bin/env bash
# This server beside its peers: the same machine, files, threads and prompts, taking turns; a table of medians and ratios.
# Usage: scripts/bench_peers.sh [--model FILE]... [--only WORD]... [--peer mistralrs] [--rounds N] [--concurrency N,N]
#          [--threads N] [--prompt-tokens N] [--max-tokens N] [--load-seconds N] [--ours BINARY] [--llama BUILD] [--output FILE]
#   --only   of the files that are measured without --model, those whose name contains WORD:
#            SmolLM2-135M in Q4_1, and as Q4_0 and Q8_0 made from it; Llama-1B-random, random weights in the shapes of Llama 3.2's
#            1B, in Q4_K_M, Q8_0 and Q4_0; qwen2.5-coder-0.5b in Q4_K_M
#   --peer   mistralrs: mistral.rs too, built once from crates.io (half an hour on two cores); llama.cpp is always measured
#   --ours   a release binary that is there already; --llama: a build of llama.cpp that is there already (with bin/llama-server)
# llama.cpp is built once, native, from the source that PyPI's llama-cpp-python carries. Figures mean something on a machine that does
# nothing else: all seven files in five rounds take hours.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

llama_version=0.3.36
# Goes up when it is built in another way: an older build is not this peer.
llama_build=2
mistralrs_version=0.8.1
peers="$repository/.cache/peers"
llama="$peers/llama.cpp-$llama_version-$llama_build"
mistralrs="$peers/mistralrs-$mistralrs_version"
ours=
smollm2="$repository/models/SmolLM2-135M-Instruct.Q4_1.gguf"
files=(
  SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct.Q4_0.gguf SmolLM2-135M-Instruct.Q8_0.gguf
  Llama-1B-random.Q4_K_M.gguf Llama-1B-random.Q8_0.gguf Llama-1B-random.Q4_0.gguf
  qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
)

models=()
words=()
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --model) models+=("${2:?--model needs a GGUF file}") && shift 2 ;;
    --only) words+=("${2:?--only needs a part of a name}") && shift 2 ;;
    --peer)
      [ "${2:-}" = mistralrs ] || die "--peer '${2:-}': expected mistralrs"
      options+=(--mistralrs "$mistralrs/bin/mistralrs") && shift 2
      ;;
    --ours) ours=${2:?--ours needs a binary} && shift 2 ;;
    --llama) llama=${2:?--llama needs a folder} && shift 2 ;;
    --rounds | --concurrency | --threads | --prompt-tokens | --max-tokens | --load-seconds | --output) options+=("$1" "${2:?$1 needs a value}") && shift 2 ;;
    -h | --help) sed -n '2,12s/^# //p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument '$1'; see scripts/bench_peers.sh --help" ;;
  esac
done

build_llama() {
  [ ! -x "$llama/bin/llama-server" ] || return 0
  [ "$llama" = "$peers/llama.cpp-$llama_version-$llama_build" ] || die "$llama has no bin/llama-server"
  require_python
  apt_install_for cmake cmake
  apt_install_for ninja ninja-build
  say "Building llama.cpp of llama-cpp-python $llama_version (once, about ten minutes on two cores)"
  python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$peers" "llama-cpp-python==$llama_version"
  tar -xzf "$peers/llama_cpp_python-$llama_version.tar.gz" -C "$peers"
  # GCC 12 declares that `_tile_loadconfig` reads 8 of its 64 bytes and leaves out what writes the others; then llama.cpp ends in
  # SIGILL at its first AMX tile. Declared as what it is, its AMX kernels run.
  printf '%s\n' '#include <immintrin.h>' '#undef _tile_loadconfig' \
    '#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))' >"$peers/amx.h"
  local flags=
  ! grep -qw amx_tile /proc/cpuinfo || flags="-w -include $peers/amx.h"
  cmake -S "$peers/llama_cpp_python-$llama_version/vendor/llama.cpp" -B "$llama" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  cmake --build "$llama" --target llama-server llama-bench llama-quantize llama-perplexity
}

# Its wheels on PyPI have no server, and are built for any x86-64.
build_mistralrs() {
  [ ! -x "$mistralrs/bin/mistralrs" ] || return 0
  say "Building mistral.rs $mistralrs_version (once, about half an hour on two cores)"
  RUSTFLAGS="-C target-cpu=native" cargo install --locked --root "$mistralrs" --version "$mistralrs_version" mistralrs-cli
}

# is_wanted FILE: whether --only names it, or nothing.
is_wanted() {
  local word
  [ ${#words[@]} -gt 0 ] || return 0
  for word in "${words[@]}"; do
    [[ "$1" != *"$word"* ]] || return 0
  done
  return 1
}

# requantized FILE: SmolLM2 in the type that the name ends with. Right for speed; its quality is that of Q4_1 at best.
requantized() {
  local type=${1%.gguf}
  [ ! -f "$peers/$1" ] || return 0
  "$llama/bin/llama-quantize" --allow-requantize "$smollm2" "$peers/$1.part" "${type##*.}" >"$peers/quantize.log" 2>&1 ||
    die "llama-quantize failed; see $peers/quantize.log"
  mv "$peers/$1.part" "$peers/$1"
}

# random_weights FILE: as make_bench_models.py says.
random_weights() {
  local type=${1%.gguf}
  [ ! -f "$peers/$1" ] || return 0
  python_environment "$peers/python" "$repository/scripts/lib/bench-requirements.txt"
  "$peers/python/bin/python" "$repository/scripts/make_bench_models.py" \
    --tokenizer "$smollm2" --quantize "$llama/bin/llama-quantize" "$peers" "${type##*.}"
}

# The files that are measured where --model names none.
prepare_models() {
  local file
  "$repository/scripts/get_models.sh" "$repository/models"
  for file in "${files[@]}"; do
    is_wanted "$file" || continue
    case "$file" in
      SmolLM2*.Q4_1.gguf) models+=("$smollm2") ;;
      SmolLM2*) requantized "$file"; models+=("$peers/$file") ;;
      Llama-1B*) random_weights "$file"; models+=("$peers/$file") ;;
      *) "$repository/scripts/get_models.sh" --qwen "$repository/models"; models+=("$repository/models/$file") ;;
    esac
  done
  [ ${#models[@]} -gt 0 ] || die "--only ${words[*]}: none of ${files[*]}"
}

require_build_tools
mkdir -p "$peers"
build_llama
[[ " ${options[*]} " != *" --mistralrs "* ]] || build_mistralrs
if [ -z "$ours" ]; then
  say "Building the server"
  (cd "$repository" && cargo build --release --locked --package mistralrs-server)
  ours=${CARGO_TARGET_DIR:-$repository/target}/release/mistralrs-server
fi
[ ${#models[@]} -gt 0 ] || prepare_models
python3 "$repository/scripts/bench_peers.py" --ours "$ours" --llama "$llama/bin" "${options[@]}" "${models[@]}"
