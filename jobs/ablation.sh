#!/usr/bin/env bash
# Measures what each part of the recipe contributes: `bash jobs/ablation.sh [NAME ...]` trains x100 on daily rain with one part
# removed or changed at a time, each for the same minutes from the same seeds, scores files that were not trained on, and
# prints a table of everything found in OUT, the means over the seeds. For each NAME and seed MINUTES and the scores' time.
# NAME (default: all of them):
#
#   recipe         the recipe as it is
#   no-critic      without the adversarial phase (--recipe crps)
#   no-flow        noise is not laid along a flow
#   no-structure   without the score of local structure
#   one-grid       every step at HR
#   no-penalty     without the critic's gradient penalty
#   strong-critic  the critic's gradient as large as the content's (beta 1)
#   pixels-alone   CRPS on pixels, not on block means
#   no-room        without residual blocks between the LR grid and HR
#   no-noise       without noise: one field
#
# Choose settings on other files than those of the final score, or it is no longer one of unseen files: put them into VALID.
#
#   MINUTES        of training, each (default: 6)
#   SEEDS          of weights, windows and noise (default: "0 1")
#   PARALLEL       how many are made at a time, each with one thread (default: 1)
#   DAILY          folder with train and eval, daily rain at 0.01 degree (default: ../shared/data/daily)
#   VALID          folder of the files that are scored (default: eval in DAILY)
#   OUT            where lists, checkpoints, scores and logs go (default: scratch/ablation)
#   VENV, PYTHON   the environment, see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
[[ ! "${1:-}" =~ ^(-h|--help)$ ]] || { help_of jobs/ablation.sh; exit; }
use_environment requirements.txt
daily=${DAILY:-../shared/data/daily} out=${OUT:-scratch/ablation}
names=(recipe no-critic no-flow no-structure one-grid no-penalty strong-critic pixels-alone no-room no-noise)
declare -A change=(
    [recipe]=""
    [no-critic]="--recipe crps"
    [no-flow]="--set directed=false"
    [no-structure]="--set structure=0,0"
    [one-grid]="--set coarse=false"
    [no-penalty]="--set penalty=0"
    [strong-critic]="--set beta=1"
    [pixels-alone]="--set pools=1"
    [no-room]="--stage-blocks 0 0 0 0"
    [no-noise]="--noise-channels 0"
)
[ $# -gt 0 ] || set -- "${names[@]}"
for name in "$@"; do
    [ -n "${change[$name]+known}" ] || { echo "error: $name: expected one of ${names[*]}" >&2; exit 2; }
done
read -ra seeds <<<"${SEEDS:-0 1}"
for number in "${PARALLEL:-1}" "${seeds[@]}"; do
    [[ "$number" =~ ^[0-9]+$ ]] || { echo "error: $number: expected a whole number in PARALLEL and SEEDS (see --help)" >&2; exit 2; }
done

variant() { # name, seed: train it and score it
    local run=$out/$1-$2
    # shellcheck disable=SC2086  # several options
    python 2train.py --data-folder "$out/lists" --target coarsen --region all --lr-step 1 --hr-step 0.01 --threads 1 \
        --max-minutes "${MINUTES:-6}" --set valid_windows=12 --seed "$2" --checkpoint "$run.pth" --runs "$out/runs" ${change[$1]} >"$run.log" 2>&1 &&
        python 3downscale_eval.py --data-folder "$out/lists" --checkpoint "$run.pth" --members 8 --threads 1 --out "$run" \
            >>"$run.log" 2>&1 && echo "$1, seed $2: done" && return
    echo "error: $1, seed $2: see $run.log" >&2
    return 1
}

python 1create_data_lists.py --train-folders "$daily/train" --eval-folders "${VALID:-$daily/eval}" --output-folder "$out/lists"
running=0 failed=0
trap 'trap - INT; kill 0' INT # Ctrl-C ends all that run
for seed in "${seeds[@]}"; do
    for name in "$@"; do
        variant "$name" "$seed" &
        running=$((running + 1))
        [ "$running" -lt "${PARALLEL:-1}" ] || { wait -n || failed=1; running=$((running - 1)); }
    done
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
python jobs/report.py ablation "$out"
exit "$failed"
