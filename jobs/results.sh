#!/usr/bin/env bash
# The results of README.md, made again from the reference checkpoints: `bash jobs/results.sh [CASE ...]`, each CASE one of
# radar_x100, radar_x40, china_x4 (default: all). Downscales and scores files that no checkpoint has seen, then puts each
# table between its marks in README.md and README.zh-CN.md and each picture into Data/README. About ten minutes on two cores.
#
#   RADAR          folder of 0.01 degree radar files (default: ../shared/data/mrms/eval)
#   CHINA          folder of 1 degree days (default: ../shared/data/china/DataEval)
#   OUT            where fields, scores.csv and all pictures go (default: scratch/results)
#   VENV, PYTHON   the environment, see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
[[ ! "${1:-}" =~ ^(-h|--help)$ ]] || { help_of jobs/results.sh; exit; }
use_environment requirements.txt
python -c "import pysteps" >/dev/null 2>&1 || { echo "error: the RainFARM row needs pysteps: pip install pysteps" >&2; exit 1; }
export MPLBACKEND=Agg
out=${OUT:-scratch/results}
[ $# -gt 0 ] || set -- radar_x100 radar_x40 china_x4
for case in "$@"; do
    case $case in
    radar_*) folder=${RADAR:-../shared/data/mrms/eval} options=(--members 8 --region all) ;;
    china_x4) folder=${CHINA:-../shared/data/china/DataEval} options=(--members 16) ;;
    *)
        echo "error: $case: expected radar_x100, radar_x40 or china_x4 (see --help)" >&2
        exit 2
        ;;
    esac
    python 1create_data_lists.py --eval-folders "$folder" --output-folder "$out/lists_${case%_*}"
    python 3downscale_eval.py --data-folder "$out/lists_${case%_*}" --checkpoint "Data/SavedModels/$case.pth" "${options[@]}" \
        --plots --out "$out/$case"
    mkdir -p Data/README
    cp "$out/$case/plots/wettest.png" "Data/README/$case.png"
done
python - "$out" "$@" <<'PY'
import csv
import re
import sys
from pathlib import Path

ENGLISH = ("", "RMSE", "CRPS [95 %]", "Q-Q RMSE", "P99", "P99.9", "spectrum, dB", "FSS {}", "S, A, L", "spread/skill", "block means")
CHINESE = ("", "RMSE", "CRPS [95 %]", "Q-Q RMSE", "P99", "P99.9", "谱距离 dB", "FSS {}", "S, A, L", "离散度/误差", "块平均误差")
ROWS = {
    "nearest": "最近邻",
    "bilinear": "双线性",
    "bicubic": "双三次",
    "quantile-matched bilinear": "分位数匹配双线性",
    "RainFARM": "RainFARM",
    "ensemble mean": "**集合平均**",
    "one member": "**单个成员**",
    "ensemble": "**集合**",
}


def cells(row, fss):
    """The cells of one row, after its name."""
    value = {key: float(text) for key, text in row.items() if key not in ("name", "note")}
    return [
        f"{value['rmse']:.3f}",
        f"{value['crps']:.3f} [{value['crps_low']:.3f}, {value['crps_high']:.3f}]",
        f"{value['qq_rmse']:.3f}",
        f"{value['p99_ratio']:.2f}",
        f"{value['p999_ratio']:.2f}",
        f"{value['lsd_db']:.2f}",
        f"{value[fss]:.3f}",
        ", ".join(f"{value[f'sal_{part}']:.2f}" for part in "sal"),
        "" if value["spread_skill"] != value["spread_skill"] else f"{value['spread_skill']:.2f}",
        f"{value['conservation_mm']:.0e}" if value["conservation_mm"] < 0.01 else f"{value['conservation_mm']:.1f}",
    ]


def table(path, header, names):
    """A Markdown table of the scores.csv at `path`; FSS at the middle threshold and window."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [key for key in rows[0] if re.fullmatch(r"fss_.*px", key)]
    fss = labels[len(labels) // 2]
    head = [words.format(fss[4:].replace("mm_", " mm, ").replace("px", " px")) for words in header]
    lines = [head, ["---"] * len(head)] + [[names(row["name"]), *cells(row, fss)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def english(name):
    return f"**{name}**" if "ensemble" in name or "member" in name else name


for readme, header, names in (("README.md", ENGLISH, english), ("README.zh-CN.md", CHINESE, ROWS.__getitem__)):
    text = Path(readme).read_text(encoding="utf-8")
    for case in sys.argv[2:]:
        marks = f"<!-- scores {case} -->", f"<!-- end {case} -->"
        if any(text.count(mark) != 1 for mark in marks):
            sys.exit(f"error: {readme}: expected {marks[0]} and {marks[1]} once each")
        before, rest = text.split(marks[0])
        made = table(f"{sys.argv[1]}/{case}/scores.csv", header, names)
        text = f"{before}{marks[0]}\n{made}\n{marks[1]}{rest.split(marks[1])[1]}"
    Path(readme).write_text(text, encoding="utf-8")
    print(f"put {len(sys.argv) - 2} tables into {readme}")
PY
