#!/usr/bin/env bash
# Makes the results again from the reference checkpoints: `bash jobs/results.sh [CASE ...]`, each CASE one of daily_x100 (1 to
# 0.01 degree), daily_x40 (0.4 to 0.01 degree), china_x4 (default: all). Downscales and scores files that no checkpoint has
# seen, then puts each table between its marks in Data/SavedModels/README.md, the figures of each case into its line of
# README.md and README.zh-CN.md, and each picture into Data/README: members.png, or wettest.png where that is missing.
#
#   DAILY          folder of daily rain at 0.01 degree (default: ../shared/data/daily/eval)
#   CHINA          folder of 1 degree days (default: ../shared/data/china/DataEval)
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
[ $# -gt 0 ] || set -- daily_x100 daily_x40 china_x4
for case in "$@"; do
    case $case in
    daily_x100 | daily_x40) folder=${DAILY:-../shared/data/daily/eval} options=(--members 8 --region all) ;;
    china_x4) folder=${CHINA:-../shared/data/china/DataEval} options=(--members 16) ;;
    *)
        echo "error: $case: expected daily_x100, daily_x40 or china_x4 (see --help)" >&2
        exit 2
        ;;
    esac
    python 1create_data_lists.py --eval-folders "$folder" --output-folder "$out/lists_${case%_*}"
    python 3downscale_eval.py --data-folder "$out/lists_${case%_*}" --checkpoint "Data/SavedModels/$case.pth" "${options[@]}" \
        --plots --out "$out/$case"
    picture=$out/$case/plots/members.png
    [ -f "$picture" ] || picture=$out/$case/plots/wettest.png
    mkdir -p Data/README
    cp "$picture" "Data/README/$case.png"
done
python jobs/report.py readme "$out" "$@"
