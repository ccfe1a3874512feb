# The same commands that CI runs, by short names. `just` alone lists them.

default:
    @just --list

# All that CI checks, the installation of what the tests need included.
ci:
    ./scripts/test.sh

# What `cargo test` needs besides Rust: models, Python and Node packages, Prometheus.
prepare:
    ./scripts/test.sh --prepare

fmt:
    cargo fmt --all

clippy:
    cargo clippy --locked --workspace --all-targets -- -D warnings

test *arguments:
    cargo test --locked --workspace {{ arguments }}

# The house rules: crate edges, layout, sizes, names, links.
tidy:
    cargo test --locked --package mistralrs-server --test tidy

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

deny:
    .cache/check-tools/bin/cargo-deny check licenses bans sources

# Locks: std, parking_lot and ours side by side.
bench *arguments:
    cargo bench --locked --features prometheus-locks {{ arguments }}

# A small model, the gateway and a filesystem server, started and shown; `just stop` ends it.
quickstart *arguments:
    ./scripts/quickstart.sh {{ arguments }}

stop:
    ./scripts/quickstart.sh --stop

# The kernels' tests under valgrind: plain loops and AVX2.
check-kernels:
    ./scripts/check_kernels.sh

# Those of quantized weights in NEON, on an emulated CPU.
check-neon:
    ./scripts/check_neon.sh
