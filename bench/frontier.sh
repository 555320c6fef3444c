#!/usr/bin/env bash
# The frontiers in bench/results/frontier: hours of training; interrupted, the same command goes on.
# Nothing else should run meanwhile. bench/frontier.sh [PYTHON [NETWORK ...]]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
networks=("${@:2}")
[ ${#networks[@]} -gt 0 ] || networks=(wide_mlp lenet5_caffe resnet8)

for network in "${networks[@]}"; do
  case $network in
    wide_mlp) training=(--epochs 3) ;;
    lenet5_caffe) training=(--epochs 2 --rescale) ;; # no batch-norm: masked signals would vanish
    resnet8) training=(--epochs 1) ;;
    *) echo "bench/frontier.sh: unknown network $network" >&2 && exit 2 ;;
  esac
  frontier() {
    "$python" -m sparseprune frontier --out "bench/results/frontier/$network" --model "$network" \
      --data fashion-mnist --optimizer sgd --batch-size 128 --threads 2 "${training[@]}" "$@"
  }
  for seed in 0 1 2; do
    frontier --seeds $seed --budgets 0.3,0.1,0.03 --blocks 1
    frontier --seeds $seed --budgets 0.1,0.03 --blocks 4 --rules uniform,cost,time
    frontier --seeds $seed --budgets 0.1,0.03 --blocks 1 --methods random,snip --rules cost --exponents 0.25,0.75,1
    frontier --seeds $seed --budgets 0.1,0.03 --blocks 1 --methods snip,grasp --rules global,cost --shuffled
  done
done
