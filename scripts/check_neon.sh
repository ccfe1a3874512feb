#!/usr/bin/env bash
# Runs the tests of mistralrs-quant on an emulated 64-bit ARM CPU, once with the dot product instructions of newer ones and once
# without: the NEON kernels must give the bits that plain loops give.
#
# What QEMU shows is that results are right, not how fast they come.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"
cd "$repository"

target=aarch64-unknown-linux-gnu
log=$(mktemp)
trap 'rm -f "$log"' EXIT

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"

# check CPU LEVELS: the tests on that CPU, which must have these instruction sets and no others.
check() {
  local cpu=$1 levels=$2
  say "mistralrs-quant on an emulated $cpu"
  # The tests print which instruction sets they ran with.
  QEMU_CPU=$cpu PROPTEST_CASES=16 cargo test --locked --package mistralrs-quant --lib --target "$target" -- --nocapture 2>&1 | tee "$log"
  grep -q "^test result: ok\. [1-9]" "$log" || die "no test ran"
  grep -q "instruction sets: \[$levels\]" "$log" || die "the tests did not run with $levels"
}

apt_install_for aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
apt_install_for qemu-aarch64 qemu-user
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
  command -v rustup >/dev/null 2>&1 || die "Rust lacks the target $target, and there is no rustup to add it"
  rustup target add "$target"
fi
check cortex-a53 "Plain, Neon"
check max "Plain, Neon, NeonDotProd"
say "NEON kernels give what plain loops give"
