#!/usr/bin/env bash
# From a fresh clone to a scaling law: install, train the default ladder, fit it, report.
# Run again, it continues what was interrupted and skips what is done. Arguments go to scripts/sweep.py.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh train
.venv/bin/python scripts/sweep.py configs/sweeps/quickstart.yaml "$@"
.venv/bin/python scripts/fit.py runs/quickstart
