#!/usr/bin/env bash
# Scores every method of a laboratory from its weights, the classical ones from their configs, and compares them:
#   experiments/table.sh lab|brains DATA
# Runs go to runs/LAB_test, the table to experiments/LAB/results. A pair of scores that is there is not taken again.
set -euo pipefail
[ $# -eq 2 ] || { sed -n 2,4p "$0"; exit 2; }
lab=$1 data=$2
cd "$(dirname "$0")/.."
dio=${DIO:-.venv/bin/dio-lightning}
rows=()
score() { # name, run, what to test
    local name=$1 run=runs/${lab}_test/$2
    shift 2
    [ -e "$run/summary.json" ] || $dio test "$@" --data.root "$data" --trainer.default_root_dir "$run"
    rows+=("$name=$run")
}
classical() { # name, config
    local own=()
    [ "$lab" = lab ] || own=(--model.resolution 2)
    score "$1" "$2" --config "experiments/classical/$2.yaml" --config "experiments/$lab/data.yaml" "${own[@]}"
}
learned() { # name, config
    local weights
    for weights in experiments/"$lab"/weights/"$2"_?.safetensors; do
        [ ! -e "$weights" ] || score "$1" "$(basename "$weights" .safetensors)" --ckpt_path "$weights"
    done
}
classical "no registration" identity
classical "affine, ours" affine
classical "affine, elastix" elastix_affine
classical "B-spline, elastix" elastix
classical "image space, SSD" intensity_tuned
learned VoxelMorph voxelmorph
learned "VoxelMorph, diffeomorphic" voxelmorph_diffeomorphic
learned Unrolling unrolling
learned "GraDIRN, SSD" gradirn
learned "GraDIRN, LNCC" gradirn_lncc
learned RIIR riir
learned DIO dio
learned DEQReg-12 deqreg12
learned DEQReg deqreg
learned "DEQReg, local contrast" deqreg_contrast
mkdir -p "experiments/$lab/results"
$dio compare "${rows[@]}" --out "experiments/$lab/results/table.md" --reference DEQReg --overwrite \
    --metrics dice hd95 folds std_logj steps
