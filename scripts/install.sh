#!/usr/bin/env bash
# Make .venv, if missing, and install the project into it with the versions of constraints.txt.
# Usage: bash scripts/install.sh [EXTRAS]      (default: train; tests want train,dev)
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-train}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or newer is needed; '$python' is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
    exit 2
fi
# The stamp is written last, so that an interrupted installation is done again.
stamp=.venv/.installed-${extras//,/-}
wanted=$(cat pyproject.toml constraints.txt | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
if [ ! -x .venv/bin/python ]; then
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
echo "Installing the project with its extras [$extras] into .venv (one to five minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
echo "$wanted" > "$stamp"
echo "Installed; to type commands yourself: source .venv/bin/activate"
