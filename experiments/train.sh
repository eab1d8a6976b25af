#!/usr/bin/env bash
# Trains the methods of a laboratory and exports their last weights beside the configs:
#   experiments/train.sh lab|brains|shift DATA [SEED ...]
# A run that is finished is not repeated, one that was stopped goes on. METHODS="deqreg riir" trains these alone.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,4p "$0"; exit 2; }
lab=$1 data=$2
shift 2
cd "$(dirname "$0")/.."
dio=${DIO:-.venv/bin/dio-lightning}
for config in experiments/"$lab"/*.yaml; do
    method=$(basename "$config" .yaml)
    grep -q '^model:' "$config" && [[ " ${METHODS:-$method} " == *" $method "* ]] || continue
    for seed in "${@:-0}"; do
        run=runs/$lab/$method/seed$seed
        weights=experiments/$lab/weights/${method}_$seed.safetensors
        [ -e "$weights" ] && { echo "$weights is there"; continue; }
        resume=()
        [ ! -e "$run/checkpoints/last.ckpt" ] || resume=(--ckpt_path last)
        $dio fit --config "experiments/$lab/data.yaml" --config "$config" --data.root "$data" "${resume[@]}" \
            --seed_everything "$seed" --data.seed "$seed" --trainer.default_root_dir "$run"
        $dio export --half --ckpt_path "$run/checkpoints/last.ckpt" "$weights"
    done
done
