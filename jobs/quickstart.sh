#!/usr/bin/env bash
# The whole chain on a generated sample archive: `bash jobs/quickstart.sh`. About ten minutes on two cores, beside the
# installation. Everything stays in Data/Sample; your own files are not touched.
#
#   MINUTES   of training, for both models together (default: 6)
#   VENV, PYTHON   see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
use_environment requirements.txt
export MPLBACKEND=Agg
sample=Data/Sample
lists=$sample/JsonPath models=$sample/SavedModels results=$sample/DataResults
started=$SECONDS

stage() {  # what it is, what it reads, what it writes; then the command
    printf '\n== %s\n   reads  %s\n   writes %s\n' "$1" "$2" "$3"
    shift 3
    echo "   \$ $*"
    "$@"
}

stage "1 sample archive and lists" "nothing" "$sample/Data*, $sample/Hr*, $lists" \
    python 1create_data_lists.py --make-sample
half=$(python -c "print(${MINUTES:-6} / 2)")
stage "2 training x100" "$lists/PreTrain.json" "$models/pre_srgan_x100.pth" \
    python 2train.py --data-folder "$lists" --lr-step 1 --checkpoint "$models/pre_srgan_x100.pth" --max-minutes "$half" --runs "$sample/runs"
stage "2 training x40" "$lists/PreTrain.json" "$models/pre_srgan_x40.pth" \
    python 2train.py --data-folder "$lists" --lr-step 0.4 --checkpoint "$models/pre_srgan_x40.pth" --max-minutes "$half" --runs "$sample/runs"
stage "5 pairs of the evaluation days" "$lists/PreEval.json" "$results/ResultEval/NN_pre_lr.nc, NN_pre_hr.nc" \
    python 5interpolation.py --split eval --data-folder "$lists" --out "$results/ResultEval"
stage "5 pairs of the forecasts" "$lists/PreObj.json" "$results/ResultObj/NN_pre_lr.nc, NN_pre_hr.nc" \
    python 5interpolation.py --split obj --data-folder "$lists" --out "$results/ResultObj"
stage "3 downscaling the evaluation days" "$lists/PreEval.json, $models/pre_srgan_x100.pth" "$results/ResultEval/NN_pre_sr.nc, scores.csv, plots/" \
    python 3downscale_eval.py --data-folder "$lists" --checkpoint "$models/pre_srgan_x100.pth" --out "$results/ResultEval" --members 4 --plots
stage "4 downscaling the forecasts" "$lists/PreObj.json, $models/pre_srgan_x40.pth" "$results/ResultObj/NN_pre_sr.nc, scores.csv, plots/" \
    python 4downscale_obj.py --data-folder "$lists" --checkpoint "$models/pre_srgan_x40.pth" --out "$results/ResultObj" --members 4 --plots
stage "notebook" "$results" "$results/Eval_Correctness.html" \
    python -m nbconvert --to html --execute Eval_Correctness.ipynb --output-dir "$results" --log-level ERROR

printf '\n== done in %d minutes\n' $(((SECONDS - started + 30) / 60))
python - "$results/ResultEval/scores.csv" <<'PY'
import csv, sys

rows = {row["name"]: row for row in csv.DictReader(open(sys.argv[1]))}
print("evaluation days of the GENERATED sample, mm (truth is an interpolation of the input, so bilinear is hard to beat):")
print(f"{'':24s}{'CRPS':>10s}{'RMSE':>10s}{'Q-Q RMSE':>10s}{'conservation error':>20s}")
for name in ("bilinear", "ensemble"):
    row = rows[name]
    print(f"{name:24s}" + "".join(f"{float(row[key]):10.3f}" for key in ("crps", "rmse", "qq_rmse")) + f"{float(row['conservation_mm']):20.1e}")
PY
echo "pictures: $results/ResultEval/plots, $results/ResultObj/plots; notebook: $results/Eval_Correctness.html"
echo "training curves: tensorboard --logdir $sample/runs"
