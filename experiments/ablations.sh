#!/usr/bin/env bash
# What each choice of experiments/dio/slices.yaml is worth: 192 updates with one of them changed, scored on the validation people.
#   experiments/ablations.sh DATA OUT [SEED ...]
# A run that is finished is not repeated, one that was stopped goes on. ROWS="recipe one_way" trains these alone.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,4p "$0"; exit 2; }
data=$1 out=$2
shift 2
cd "$(dirname "$0")/.."
dio=${DIO:-.venv/bin/dio-lightning}
rows="recipe intensities no_deformation one_way consistency no_average constant_rate rising_levels image_term random_start
    finest_level no_regularity"
changes() {
    case $1 in
    recipe) ;;
    no_average) echo '--trainer.callbacks [{"class_path":"RegistrationScores","init_args":{"min_voxels":10}}]' ;;
    one_way) echo '--model.symmetric false' ;;
    consistency) echo '--model.consistency 0.03' ;;
    no_deformation) echo '--data.augment []' ;;
    intensities) echo '--model.features {"class_path":"UNet","init_args":{"spatial_dims":2,"residual":true,"precision":"bfloat16"}}' ;;
    random_start) echo '--model.features.network.residual false' ;;
    finest_level) echo '--model.level_weights [0,0,1]' ;;
    rising_levels) echo '--model.level_weights [0.25,0.5,1]' ;;
    image_term) echo '--model.objective.image LNCC --model.objective.image_weight 0.3' ;;
    no_regularity) echo '--model.layer.update.regularity 0' ;;
    constant_rate) echo '--model.scheduler.power 0' ;;
    *) echo "no row $1, expected of: $rows" >&2; return 2 ;;
    esac
}
table=()
for seed in "${@:-0}"; do
    for row in ${ROWS:-$rows}; do
        change=$(changes "$row")
        run=$out/$row/seed$seed
        table+=("$row=$run/test")
        [ ! -e "$run/test/summary.json" ] || continue
        resume=()
        [ ! -e "$run/checkpoints/last.ckpt" ] || resume=(--ckpt_path last)
        # shellcheck disable=SC2086  # options are words
        $dio fit --config experiments/dio/slices.yaml --data.root "$data" --trainer.max_epochs 8 --trainer.limit_val_batches 0 \
            --trainer.num_sanity_val_steps 0 --model.scheduler.total_iters 8 $change "${resume[@]}" \
            --seed_everything "$seed" --data.seed "$seed" --trainer.default_root_dir "$run"
        $dio test --ckpt_path "$run/checkpoints/last.ckpt" --data.root "$data" --data.test_split registration_val \
            --data.batch_size 12 --trainer.default_root_dir "$run/test"
    done
done
$dio compare "${table[@]}" --out "$out/table.md" --reference "${table[0]%%=*}" --metrics dice hd95 folds std_logj --overwrite
