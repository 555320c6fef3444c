#!/usr/bin/env bash
# The fair frontiers in bench/results/fair: every contender has a learning rate of its own, of five trials on
# held-out training images; three seeds; 1 to 30 epochs, the shortest of all networks first.
#
#   bench/fair.sh [--python PYTHON] [--limit-minutes MINUTES] [NETWORK ...]
#
# Interrupted, killed or out of time, the same command goes on. Nothing else should run meanwhile.
#
# Minutes on 2 cores, trials included, by the seconds an epoch of bench/results/frontier (all contenders once:
# wide_mlp 24 s, lenet5_caffe 1 min, resnet8 3 min, resnet8-2x about 7 min):
#
#   epochs            1     3    10    30
#   wide_mlp          3    10    12    36
#   lenet5_caffe      8    24    30    90
#   resnet8          24    71    90     -
#   resnet8-2x       53    60     -     -    trials of one epoch, no wider networks
#
# Eight and a half hours in all. Left out for their time: 30 epochs of resnet8 (four and a half hours), 10 and
# 30 of resnet8-2x (three hours and ten), and sparse networks twice as wide as resnet8-2x.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
limit=1000000
while [[ ${1:-} == --* ]]; do
  case $1 in
    --python) python=$2 ;;
    --limit-minutes) limit=$2 ;;
    *) echo "bench/fair.sh: unknown option $1" >&2 && exit 2 ;;
  esac
  shift 2
done
networks=("$@")
[ ${#networks[@]} -gt 0 ] || networks=(wide_mlp lenet5_caffe resnet8 resnet8-2x)

for epochs in 1 3 10 30; do
  for network in "${networks[@]}"; do
    # No batch-norm: signals of masked layers would vanish without --rescale.
    case $network in
      wide_mlp | lenet5_caffe) longest=30 options=(--model "$network" --tune-epochs 3 --rescale) ;;
      resnet8) longest=10 options=(--model resnet8 --tune-epochs 3) ;;
      resnet8-2x) longest=3 options=(--model resnet8 --width 2 --tune-epochs 1) ;;
      *) echo "bench/fair.sh: unknown network $network" >&2 && exit 2 ;;
    esac
    [ "$epochs" -le "$longest" ] || continue
    frontier() {
      # SECONDS is bash's clock. Out of time, the command ends with 130, and so does this script.
      local left=$(((limit * 60 - SECONDS) / 60))
      [ $left -gt 0 ] || exit 130
      "$python" -m sparseprune frontier --out "bench/results/fair/$network" --data fashion-mnist \
        --optimizer sgd --batch-size 128 --threads 2 --seeds 0,1,2 --epochs "$epochs" --tune 5 \
        --small-budgets 0.3,0.1,0.03 --limit-minutes $left "${options[@]}" "$@"
    }
    frontier --budgets 0.3,0.1 --blocks 1 --methods random --rules uniform,erk
    frontier --budgets 0.3,0.1 --blocks 1 --methods snip --rules cost
    frontier --budgets 0.1 --blocks 4 --methods random --rules uniform
    [ "$network" != resnet8-2x ] || continue
    frontier --budgets 0.3,0.1 --blocks 1 --methods random --rules uniform --widths 2
  done
done
