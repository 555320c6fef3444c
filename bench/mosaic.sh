#!/usr/bin/env bash
# The mosaic in bench/results/mosaic: about two hours on two cores; interrupted, the same command goes on.
# Accuracy does not mind other processes, "time" does. bench/mosaic.sh [PYTHON [MINUTES]]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
limit=(--limit-minutes "${2:-inf}")

"$python" -m bench.mosaic time --threads 2
"$python" -m bench.mosaic tuned --seeds 0,1,2 --threads 2 "${limit[@]}"
"$python" -m bench.mosaic region --seeds 0,1,2 --threads 2 "${limit[@]}"
"$python" -m bench.mosaic plot
