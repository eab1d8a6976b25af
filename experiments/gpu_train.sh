#!/usr/bin/env bash
# What a lent GPU trains in a given time, side by side:
#   experiments/gpu_train.sh DATA OUT SECONDS [JOB ...]
# DATA is brains_2mm. A JOB is `posteriors`, `posteriors_any`, or a method of brains_updates and a seed, `deqreg_0`; jobs joined
# by + follow one another, others run at once. Posteriors train until the time is nearly over, others as long as they
# take. OUT gets weights.tar.gz (averaged weights, and those of equal updates), logs.tar.gz and table.txt, by the end of
# SECONDS; everything else is in WORK (a new folder by default), from where the same command goes on. The environment
# has PYTHON, EXTRA (options of every fit), EXTRA_posteriors and so on (of one), WORKERS (loaders of posteriors).
set -uo pipefail
[ $# -ge 3 ] || { sed -n 2,9p "$0"; exit 2; }
data=$1 out=$2 limit=$3
shift 3
[ -d "$data" ] || { echo "$data is no folder, expected that of brains_2mm" >&2; exit 2; }
[[ $limit =~ ^[1-9][0-9]*$ ]] || { echo "SECONDS is '$limit', expected a whole number above 0" >&2; exit 2; }
mkdir -p "$out"
data=$(realpath "$data") out=$(realpath "$out") work=${WORK:-$(mktemp -d)} python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 MPLBACKEND=Agg
start=${START:-25} reserve=${RESERVE:-45} # seconds until a training begins, and for what comes after it
mkdir -p "$work/weights" "$work/logs"
nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv -l 10 >"$work/logs/gpu.txt" 2>&1 &
watch=$!
{ df -h /dev/shm; nproc; } >"$work/logs/machine.txt" 2>&1

dio() { "$python" -m dio_lightning "$@"; }

train() { # NAME: until it is finished, or time is nearly over; SIGTERM saves a checkpoint
    local name=$1 method=${1%_[0-9]} left=$((limit - reserve - SECONDS)) options=()
    local run=$work/$name extra=EXTRA_$method
    case $name in
    posteriors*)
        options=(--config "experiments/dio/$name.yaml" --data.num_workers "${WORKERS:-5}"
            --trainer.callbacks.seconds $((limit - reserve - start)))
        ;;
    *)
        options=(--config experiments/brains_updates/data.yaml --config "experiments/brains_updates/$method.yaml"
            --seed_everything "${name##*_}" --data.seed "${name##*_}")
        ;;
    esac
    [ ! -e "$run/checkpoints/last.ckpt" ] || options+=(--ckpt_path last)
    # shellcheck disable=SC2086
    timeout -s TERM -k 15 "$left" "$python" -m dio_lightning fit ${EXTRA_FIRST:-} "${options[@]}" --data.root "$data" \
        --trainer.default_root_dir "$run" --trainer.enable_progress_bar false \
        --trainer.logger CSVLogger --trainer.logger.save_dir "$run" ${EXTRA:-} ${!extra:-}
}

finish() { # NAME: export, then validate in what time is left
    local name=$1 weights=$work/weights/$1.safetensors half=()
    [[ $name == posteriors* ]] || half=(--half)
    dio export "${half[@]}" --overwrite --ckpt_path "$work/$name/checkpoints/last.ckpt" "$weights" || return
    local left=$((limit - 8 - SECONDS))
    [ $left -lt 15 ] || timeout -s TERM -k 5 $left "$python" -m dio_lightning validate --ckpt_path "$weights" --data.root "$data" \
        --trainer.default_root_dir "$work/$name/val" --trainer.limit_val_batches 1.0 --trainer.logger false \
        --trainer.enable_progress_bar false --data.num_workers 0
}

lane() { # JOBS one after another; one that fails stops no other
    local name
    for name in "$@"; do
        [ $((limit - reserve - start - SECONDS)) -gt 0 ] || { echo "$name: no time is left" >"$work/logs/$name.log"; continue; }
        local began=$SECONDS
        train "$name" >"$work/logs/$name.log" 2>&1
        echo "fit: code $? after $((SECONDS - began)) s" >>"$work/logs/$name.log"
        finish "$name" >>"$work/logs/$name.log" 2>&1
    done
}

pack() { # what comes back is whole at any time
    tar -czf "$work/weights.tar.gz" -C "$work" weights && mv "$work/weights.tar.gz" "$out"
    for metrics in "$work"/*/lightning_logs/version_*/metrics.csv; do
        [ ! -e "$metrics" ] || cp "$metrics" "$work/logs/$(basename "${metrics%/lightning_logs*}")_$(basename "$(dirname "$metrics")").csv"
    done
    tar -czf "$work/logs.tar.gz" -C "$work" logs && mv "$work/logs.tar.gz" "$out"
}

table() { # name, updates, seconds of the whole fit, last loss, validation Dice
    printf '%-18s %8s %s\n' name updates 'log'
    for log in "$work"/logs/*.log; do
        name=$(basename "$log" .log)
        updates=$(cut -d, -f1-40 "$work/logs/${name}"_version_*.csv 2>/dev/null | "$python" -c '
import csv, sys
rows = list(csv.DictReader(sys.stdin))
print(1 + max((int(r["step"]) for r in rows if r.get("step", "").isdigit()), default=-1))' 2>/dev/null)
        printf '%-18s %8s %s\n' "$name" "$updates" "$(grep -E '^fit: code|val/dice|^epoch ' "$log" | tail -n 5 | tr '\n' ' ' | tr -s ' ')"
    done
}

[ $# -gt 0 ] || set -- posteriors posteriors_any deqreg_0+riir_0+voxelmorph_0 riir_1+deqreg_1+voxelmorph_1 \
    voxelmorph_2+riir_2+deqreg_2
for jobs in "$@"; do
    # shellcheck disable=SC2086
    lane ${jobs//+/ } &
done
while [ "$(jobs -rp | grep -cv "^$watch$")" -gt 0 ] && [ $((limit - 6 - SECONDS)) -gt 0 ]; do
    sleep 1
    [ $((SECONDS % 60)) -ne 0 ] || pack
done
kill "$watch" 2>/dev/null
pack
table | tee "$out/table.txt"
