#!/usr/bin/env bash
# What each part of the recipe is worth: `bash jobs/ablation.sh [NAME ...]` trains x100 on radar with one part taken away (or
# changed) at a time, each for the same minutes from the same seed, scores files that were not trained on, and prints a table
# of everything found in OUT. Names: see below (default: all). Fifteen minutes for each on two cores.
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
    [no-noise]="--noise-channels 0 --members 1"
    [no-conservation]="--no-conserve"
    [pixels-only]="--pools 1"
    [adversarial]="--adversarial-steps 500"
    [wide]="--channels 48"
    [shallow]="--blocks 0 --stage-blocks 0 0 0 0"
    [any-window]="--no-wet"
    [no-restraint]="--restraint 0"
    [amounts-as-they-are]="--amounts 1"
)
[ $# -gt 0 ] || set -- recipe no-noise no-conservation pixels-only adversarial wide shallow any-window no-restraint amounts-as-they-are
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
python - "$out" <<'PY'
import csv
import sys
from pathlib import Path

import torch

print("\n| | weights | steps | CRPS | spectrum, dB | P99.9 | spread/skill | block means |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
for scores in sorted(Path(sys.argv[1]).glob("*/scores.csv")):
    state = torch.load(scores.parent.with_suffix(".pth"), weights_only=True)
    weights = sum(v.numel() for v in state["generator"].values()) / 1e6
    row = {r["name"]: r for r in csv.DictReader(scores.open(encoding="utf-8"))}["ensemble"]
    keys = ("crps", "lsd_db", "p999_ratio", "spread_skill", "conservation_mm")
    print(f"| {scores.parent.name} | {weights:.2f} M | {state['step']} | " + " | ".join(f"{float(row[k]):.3g}" for k in keys) + " |")
PY
