#!/usr/bin/env bash
# Shows the program on three days of real rain: `bash jobs/quickstart.sh`. First a shipped model
# downscales days it never saw, scored against the truth, with a picture. Then it trains a small model, and runs the other stages
# and the notebook. What it makes lies in Data/Sample/JsonPath,
# SavedModels, DataResults and runs, where an earlier quickstart is replaced; your own files are not touched.
#
#   MINUTES        of training (default: 2)
#   MEMBERS        of each ensemble (default: 4)
#   VENV, PYTHON   the environment, see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
case "${1:-}" in
"") ;;
-h | --help)
    help_of jobs/quickstart.sh
    exit
    ;;
*)
    echo "error: quickstart.sh takes no arguments, only variables (see --help); found: $*" >&2
    exit 2
    ;;
esac
[[ "${MINUTES:-2}" =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "error: MINUTES=$MINUTES: expected a number, such as 2 or 0.5" >&2; exit 2; }
use_environment requirements.txt
export MPLBACKEND=Agg
sample=Data/Sample
lists=$sample/JsonPath model=$sample/SavedModels/small_x100.pth results=$sample/DataResults
days=$results/ResultEval forecasts=$results/ResultObj
started=$SECONDS
rm -rf "$lists" "${model%/*}" "$results" "$sample/runs"

stage() { # what it is, what it reads, what it writes; then the command
    local begun=$SECONDS
    printf '\n== %s\n   reads  %s\n   writes %s\n' "$1" "$2" "$3"
    shift 3
    echo "   \$ $*"
    "$@"
    echo "   took $((SECONDS - begun)) s"
}

stage "1 lists of the sample" "$sample/DataTrain, DataEval, DataObj" "$lists/Pre*.json" \
    python 1create_data_lists.py --train-folders $sample/DataTrain --eval-folders $sample/DataEval --obj-folders $sample/DataObj --output-folder $lists
stage "3 days of 1 degree to 0.01 degree, with the shipped model" "$lists/PreEval.json, Data/SavedModels/daily_x100.pth" "$days/NN_pre_sr.nc, scores.csv, plots" \
    python 3downscale_eval.py --data-folder $lists --checkpoint Data/SavedModels/daily_x100.pth --members "${MEMBERS:-4}" --plots --out $days
printf '\n== first result after %d s. Open this picture: input, truth and members at full resolution\n   %s\n' $((SECONDS - started)) "$PWD/$days/plots/members.png"

stage "2 training a small model of your own" "$lists/PreTrain.json" "$model, $sample/runs" \
    python 2train.py --data-folder $lists --target coarsen --region all --lr-step 1 --window 3 3 --valid-share 0.5 --valid-windows 4 --epoch-steps 40 \
    --max-minutes "${MINUTES:-2}" --checkpoint $model --runs $sample/runs
stage "its curve" "$sample/runs" "$results/training.png" \
    python jobs/report.py curve $sample/runs/small_x100 $results/training.png
stage "4 what stands in for forecasts, 0.4 to 0.01 degree" "$lists/PreObj.json, Data/SavedModels/daily_x40.pth" "$forecasts/NN_pre_sr.nc, scores.csv, plots" \
    python 4downscale_obj.py --data-folder $lists --checkpoint Data/SavedModels/daily_x40.pth --members "${MEMBERS:-4}" --plots --out $forecasts
stage "5 pairs of the days" "$lists/PreEval.json" "$days/NN_pre_lr.nc, NN_pre_hr.nc" \
    python 5interpolation.py --split eval --data-folder $lists --target coarsen --region all --lr-step 1 --out $days
stage "5 pairs of what stands in for forecasts" "$lists/PreObj.json" "$forecasts/NN_pre_lr.nc, NN_pre_hr.nc" \
    python 5interpolation.py --split obj --data-folder $lists --out $forecasts
RUN=$sample stage "notebook" "$results" "$results/Eval_Correctness.html" \
    python -m nbconvert --KernelManager.transport=ipc --to html --execute Eval_Correctness.ipynb --output-dir $results --log-level ERROR

printf '\n== done in %d min %02d s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
echo "picture:  $PWD/$days/plots/members.png"
echo "scores:   $days/scores.csv; of the forecasts' block means: $forecasts/scores.csv"
echo "training: $results/training.png, or tensorboard --logdir $sample/runs"
echo "notebook: $PWD/$results/Eval_Correctness.html"
