#!/usr/bin/env bash
# Measures what each part of the recipe contributes: `bash jobs/ablation.sh [NAME ...]` trains x100 on radar with one part
# removed or changed at a time, each for the same minutes from the same seed, scores files that were not trained on, and
# prints a table of everything found in OUT. About fifteen minutes for each NAME on two cores. NAME (default: all of them):
# recipe, no-noise, no-conservation, adversarial, wide, shallow.
#
#   MINUTES        of training, each (default: 10)
#   RADAR          folder with train and eval (default: ../shared/data/mrms)
#   OUT            where lists, checkpoints and scores go (default: scratch/ablation)
#   VENV, PYTHON   the environment, see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
[[ ! "${1:-}" =~ ^(-h|--help)$ ]] || { help_of jobs/ablation.sh; exit; }
use_environment requirements.txt
radar=${RADAR:-../shared/data/mrms} out=${OUT:-scratch/ablation}
declare -A change=(
    [recipe]=""
    [no-noise]="--noise-channels 0"
    [no-conservation]="--no-conserve"
    [adversarial]="--adversarial-steps 500"
    [wide]="--channels 48"
    [shallow]="--blocks 0 --stage-blocks 0 0 0 0"
)
[ $# -gt 0 ] || set -- recipe no-noise no-conservation adversarial wide shallow
for name in "$@"; do
    [ -n "${change[$name]+known}" ] || { echo "error: $name: expected one of ${!change[*]}" >&2; exit 2; }
done
python 1create_data_lists.py --train-folders "$radar/train" --eval-folders "$radar/eval" --output-folder "$out/lists"
for name in "$@"; do
    # shellcheck disable=SC2086  # several options
    python 2train.py --data-folder "$out/lists" --target coarsen --region all --lr-step 1 --hr-step 0.01 --valid-share 0 \
        --max-minutes "${MINUTES:-10}" --checkpoint "$out/$name.pth" --runs "$out/runs" ${change[$name]}
    python 3downscale_eval.py --data-folder "$out/lists" --checkpoint "$out/$name.pth" --members 8 --out "$out/$name"
done
python jobs/report.py ablation "$out"
