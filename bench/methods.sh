#!/usr/bin/env bash
# The experiments on methods in bench/results/methods: hours of training; interrupted, the same command goes on.
# Nothing else should run meanwhile. bench/methods.sh [PYTHON [EXPERIMENT ...]]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
experiments=("${@:2}")
[ ${#experiments[@]} -gt 0 ] || experiments=(snip-table samples grouping resnet8)

for experiment in "${experiments[@]}"; do
  "$python" -m bench.methods "$experiment" --seeds 0,1,2 --threads 2 --out "bench/results/methods/$experiment.jsonl"
done
[ ! -f bench/results/methods/resnet8.jsonl ] || "$python" -m bench.methods plot
