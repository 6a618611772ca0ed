#!/usr/bin/env bash
# Makes the results again from the reference checkpoints: `bash jobs/results.sh [CASE ...]`, each CASE one of daily_x100 (1 to
# 0.01 degree), daily_x40 (0.4 to 0.01 degree), china_x4, china (1 degree days and 0.4 degree forecasts with the daily models;
# there is no truth, so it gives pictures alone) and quickstart (which it runs, for its picture and the notebook with pictures);
# default: all. Downscales and scores files that no checkpoint has seen, then puts each table between its marks in
# Data/SavedModels/README.md, the figures of each case into its line of README.md and README.zh-CN.md, and each picture into
# Data/README: members.png, or wettest.png where that is missing.
#
#   DAILY          folder of daily rain at 0.01 degree (default: ../shared/data/daily/eval)
#   CHINA          folder of 1 degree days (default: ../shared/data/china/DataEval)
#   FORECASTS      folder of 0.4 degree forecasts (default: ../shared/data/china/DataObj)
#   OUT            where fields, scores.csv and all pictures go (default: scratch/results)
#   VENV, PYTHON   the environment, see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
[[ ! "${1:-}" =~ ^(-h|--help)$ ]] || { help_of jobs/results.sh; exit; }
use_environment requirements.txt
python jobs/report.py packages pysteps --advice "the RainFARM row needs it: pip install pysteps"
export MPLBACKEND=Agg
out=${OUT:-scratch/results}
days=${CHINA:-../shared/data/china/DataEval} forecasts=${FORECASTS:-../shared/data/china/DataObj}
here=(--region 106 110 26 30 --members 8) scored=()
[ $# -gt 0 ] || set -- quickstart china daily_x100 daily_x40 china_x4
mkdir -p Data/README

downscale() { # stage, its list, checkpoint, case and options: fields, table and pictures in $out/CASE, one picture in Data/README
    local stage=$1 lists=$out/lists_$2 model=$3 case=$4
    python "$stage" --data-folder "$lists" --checkpoint "Data/SavedModels/$model.pth" "${@:5}" --plots --out "$out/$case"
    local picture=$out/$case/plots/members.png
    [ -f "$picture" ] || picture=$out/$case/plots/wettest.png
    cp "$picture" "Data/README/$case.png"
}

for case in "$@"; do
    lists=(--output-folder "$out/lists_${case%_*}")
    case $case in
    daily_x100 | daily_x40)
        python 1create_data_lists.py --eval-folders "${DAILY:-../shared/data/daily/eval}" "${lists[@]}"
        downscale 3downscale_eval.py daily "$case" "$case" --members 8 --region all
        scored+=("$case")
        ;;
    china_x4)
        python 1create_data_lists.py --eval-folders "$days" "${lists[@]}"
        downscale 3downscale_eval.py china "$case" "$case" --members 16
        scored+=("$case")
        ;;
    china)
        python 1create_data_lists.py --eval-folders "$days" --obj-folders "$forecasts" "${lists[@]}"
        downscale 3downscale_eval.py china daily_x100 china_x100 "${here[@]}"
        downscale 4downscale_obj.py china daily_x40 china_x40 "${here[@]}"
        ;;
    quickstart)
        bash jobs/quickstart.sh
        cp Data/Sample/DataResults/ResultEval/plots/members.png Data/README/quickstart.png
        RUN=Data/Sample python -m nbconvert --KernelManager.transport=ipc --to notebook --execute --inplace Eval_Correctness.ipynb
        ;;
    *)
        echo "error: $case: expected daily_x100, daily_x40, china_x4, china or quickstart (see --help)" >&2
        exit 2
        ;;
    esac
done
[ ${#scored[@]} -eq 0 ] || python jobs/report.py readme "$out" "${scored[@]}"
