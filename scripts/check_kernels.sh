#!/usr/bin/env bash
# Runs the kernels' own tests under valgrind: a read or write outside of memory that was asked for, and a decision or a result that
# depends on memory nobody wrote, fails them.
#
# Covered: mistralrs-quant (packing, rounding of activations, products with all types) and mistralrs-paged-attn (attention over the paged
# cache), in plain loops and in AVX2 with FMA and F16C. Not covered: the AVX-512, AVX-VNNI and AMX kernels, which valgrind's CPU lacks.
# The first two are the same generic loops over other intrinsics, which load and store as many values at the same addresses; plain
# tests compare their results bit by bit. Those of AMX are compared with the reference only.
#
# A test runs some 40 times as long as alone. Those that repeat the same kernels over more than 500 tokens, or token by token, are
# left out, and of random shapes of attention only a few are tried.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"
cd "$repository"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# test_binary PACKAGE: builds its unit tests and prints where they are.
test_binary() {
  cargo test --locked --package "$1" --lib --no-run --message-format=json 2>/dev/null |
    python3 -c 'import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable"): print(message["executable"])'
}

# check PACKAGE ARGUMENT...: its unit tests under valgrind.
check() {
  local package=$1 binary
  shift
  binary=$(test_binary "$package")
  [ -x "$binary" ] || die "the tests of $package do not build"
  say "$package under valgrind"
  # The tests print which instruction sets they ran with.
  PROPTEST_CASES=6 valgrind --quiet --leak-check=no --error-exitcode=9 "$binary" --test-threads=1 --nocapture "$@" 2>&1 | tee "$log"
  grep -q "^test result: ok\. [1-9]" "$log" || die "no test of $package ran"
  grep -q 'instruction sets: .*Avx2' "$log" || die "this CPU has no AVX2: only plain loops of $package were checked"
}

apt_install_for valgrind valgrind
# valgrind's CPU may be of another maker than the system's.
check mistralrs-quant --skip the_maker_is_who_the_system_says
check mistralrs-paged-attn --skip block_manager:: --skip prefix_cache:: --skip a_token_has_the_same_bits --skip over_many_spans
say "Kernels in plain loops and AVX2 touch no memory but their own"
