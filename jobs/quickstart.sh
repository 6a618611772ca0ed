#!/usr/bin/env bash
# Runs all five stages on a generated sample archive: `bash jobs/quickstart.sh`. About ten minutes on two cores, not counting
# the installation. Everything stays in Data/Sample, where an earlier quickstart is replaced; your own files are not touched.
#
#   MINUTES        of training, for both models together (default: 6)
#   MEMBERS        of each ensemble (default: 6)
#   VENV, PYTHON   the environment, see jobs/environment.sh
#
# The sample holds 0.01 degree truth, so the models learn from it (target coarsen) and are scored on days they never saw.
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
use_environment requirements.txt
export MPLBACKEND=Agg
sample=Data/Sample
days=$sample/JsonPath truth=$sample/JsonTruth models=$sample/SavedModels results=$sample/DataResults
x100=$models/pre_srgan_coarsen_x100.pth x40=$models/pre_srgan_coarsen_x40.pth
[[ "${MINUTES:-6}" =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "error: MINUTES=$MINUTES: expected a number, such as 6 or 1.5" >&2; exit 2; }
half=$(LC_ALL=C awk -v minutes="${MINUTES:-6}" 'BEGIN { print minutes / 2 }')
started=$SECONDS
rm -rf "$models" "$results" "$sample/runs"

stage() { # what it is, what it reads, what it writes; then the command
    local begun=$SECONDS
    printf '\n== %s\n   reads  %s\n   writes %s\n' "$1" "$2" "$3"
    shift 3
    echo "   \$ $*"
    "$@"
    echo "   took $((SECONDS - begun)) s"
}

stage "1 sample archive and its lists" "nothing" "$sample/{DataTrain,DataEval,DataObj,HrTrain,HrEval}, $days/Pre*.json" \
    python 1create_data_lists.py --make-sample
stage "1 lists of the 0.01 degree truth" "$sample/HrTrain, $sample/HrEval" "$truth/Pre*.json" \
    python 1create_data_lists.py --train-folders "$sample/HrTrain" --eval-folders "$sample/HrEval" --output-folder "$truth"
stage "2 training x100, 1 to 0.01 degree" "$truth/PreTrain.json" "$x100, $sample/runs" \
    python 2train.py --data-folder "$truth" --target coarsen --region all --lr-step 1 --checkpoint "$x100" --max-minutes "$half" --runs "$sample/runs"
stage "2 training x40, 0.4 to 0.01 degree" "$truth/PreTrain.json" "$x40, $sample/runs" \
    python 2train.py --data-folder "$truth" --target coarsen --region all --lr-step 0.4 --checkpoint "$x40" --max-minutes "$half" --runs "$sample/runs"
stage "5 pairs of the evaluation days" "$truth/PreEval.json" "$results/ResultEval/NN_pre_lr.nc, NN_pre_hr.nc" \
    python 5interpolation.py --split eval --data-folder "$truth" --target coarsen --region all --lr-step 1 --out "$results/ResultEval"
stage "5 pairs of the forecasts" "$days/PreObj.json" "$results/ResultObj/NN_pre_lr.nc, NN_pre_hr.nc" \
    python 5interpolation.py --split obj --data-folder "$days" --out "$results/ResultObj"
stage "3 downscaling the evaluation days" "$truth/PreEval.json, $x100" "$results/ResultEval/NN_pre_sr.nc, scores.csv, plots" \
    python 3downscale_eval.py --data-folder "$truth" --checkpoint "$x100" --out "$results/ResultEval" --members "${MEMBERS:-6}" --plots
stage "4 downscaling the forecasts" "$days/PreObj.json, $days/PreEval.json, $x40" "$results/ResultObj/NN_pre_sr.nc, scores.csv, plots" \
    python 4downscale_obj.py --data-folder "$days" --checkpoint "$x40" --region 106 110 26 30 --out "$results/ResultObj" --members "${MEMBERS:-6}" --plots
RUN=$sample stage "notebook" "$results" "$results/Eval_Correctness.ipynb, Eval_Correctness.html" \
    python -m nbconvert --KernelManager.transport=ipc --to notebook --execute Eval_Correctness.ipynb --output-dir "$results" --log-level ERROR
python -m nbconvert --to html "$results/Eval_Correctness.ipynb" --log-level ERROR

printf '\n== done in %d min %02d s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
python jobs/report.py quickstart "$results"
echo "pictures: $results/ResultEval/plots, $results/ResultObj/plots"
printf '  %s\n' "$results"/Result*/plots/*.png
echo "notebook: $results/Eval_Correctness.html; training curves: tensorboard --logdir $sample/runs"
