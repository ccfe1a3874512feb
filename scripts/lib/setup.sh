# shellcheck shell=bash
# Installing what a script needs, and only what is missing. Sourced, not run.

# A headline, so that a long run can be followed.
say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }

warn() { printf 'warning: %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command as root, by sudo where needed.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    sudo "$@"
  else
    die "this needs root: run '$*' yourself, then run this script again"
  fi
}

apt_install() {
  command -v apt-get >/dev/null 2>&1 || die "there is no apt-get here; install what Debian calls $* and run this script again"
  say "Installing $*"
  local -a apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get)
  "${apt[@]}" install -y --no-install-recommends "$@" ||
    { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"; }
}

# apt_install_for PROGRAM PACKAGE...: installs the packages if the program is missing.
apt_install_for() {
  local program=$1
  shift
  command -v "$program" >/dev/null 2>&1 || apt_install "$@"
}

# What a build needs besides Rust.
require_build_tools() {
  apt_install_for curl curl ca-certificates
  apt_install_for cc build-essential
  command -v cargo >/dev/null 2>&1 || die "Rust is missing. Install it from https://rustup.rs (1.95 or newer), then run this script again"
}

# A Python that can make virtual environments; Debian ships that part apart.
require_python() {
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3 python3-venv python3-pip
}

# python_environment DIRECTORY REQUIREMENTS: a virtual environment with exactly these packages.
python_environment() {
  local directory=$1 requirements=$2
  if [ -x "$directory/bin/python" ] && cmp -s "$requirements" "$directory/installed.txt"; then
    return 0
  fi
  require_python
  rm -rf "$directory"
  python3 -m venv "$directory" && "$directory/bin/pip" install --quiet --requirement "$requirements" && cp "$requirements" "$directory/installed.txt"
}

# node_packages DIRECTORY MANIFESTS: the packages of MANIFESTS/package-lock.json, without install scripts.
node_packages() {
  local directory=$1 manifests=$2
  if cmp -s "$manifests/package-lock.json" "$directory/installed.json"; then
    return 0
  fi
  require_npm
  mkdir -p "$directory"
  cp "$manifests/package.json" "$manifests/package-lock.json" "$directory/"
  (cd "$directory" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) && cp "$manifests/package-lock.json" "$directory/installed.json"
}

require_npm() {
  apt_install_for node nodejs
  apt_install_for npm npm
}
