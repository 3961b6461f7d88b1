#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go: steps of every row with peak memory and the GPU's busy share, scaling, and
# whole runs of Omniglot and mini-ImageNet 5-way 1-shot, extrapolated from short ones.
#   experiments/benchmarks/gpu.sh [--out DIR] [--full]            --full runs all 60,000 iterations of each instead
#   experiments/benchmarks/gpu.sh --device cpu --quick            tries it out anywhere, on tiny shapes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=runs/benchmarks/gpu device=cuda quick=() full=() rows=(step) scaling=(tasks "inner steps" queries)
while (($#)); do
  case "$1" in
    --out) out=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --quick) quick=(--quick --rounds 1) rows=(sine) scaling=(steps-1 steps-2); shift ;;
    --full) full=(--full); shift ;;
    *) echo "unknown option $1; there are --out DIR, --device cpu|cuda, --quick, --full" >&2; exit 2 ;;
  esac
done

run() { "${PYTHON:-python}" experiments/benchmarks/run.py --device "$device" "$@"; }
torch_only=(mamllit mamllit-eager learn2learn higher torchopt autograd)
run --rows "${rows[@]}" --peers "${torch_only[@]}" --threads 1 --out "$out/steps" "${quick[@]}"
run --rows "${scaling[@]}" --threads 1 --out "$out/scaling" "${quick[@]}"
run --whole omniglot mini --peers learn2learn --threads 1 --rounds 1 --out "$out/whole" "${quick[@]}" "${full[@]}"
