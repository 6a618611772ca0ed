"""What the scripts of jobs/ print and write beside the numbered stages: missing packages, tables of scores, a curve.

Reads   scores.csv of stages 3 and 4; for the ablation also the checkpoint beside each folder; for the curve the events
        of stage 2
Writes  the tables of Data/SavedModels/README.md and the figures of both READMEs (`readme` alone; the others print)

    python jobs/report.py packages torch xarray
    python jobs/report.py curve Data/Sample/runs/small_x100 Data/Sample/training.png
    python jobs/report.py ablation scratch/ablation
    python jobs/report.py readme scratch/results daily_x100 daily_x40

Runs with the standard library alone, since it is what says that a package is missing; `ablation` loads PyTorch, `curve`
the rooms of the house.
"""

import argparse
import csv
import importlib.util
import re
import sys
from pathlib import Path

READMES = "README.md", "README.zh-CN.md"  # one line a case, its figures in the same columns
DETAILS = "Data/SavedModels/README.md"  # a whole table a case, between marks
SUMMARY = "crps", "lsd_db", "p999_ratio"  # columns of the READMEs' one table; realism and block means follow
METHODS = "bilinear", "RainFARM", "ensemble"  # in each of its cells, ours last
COLUMNS = (
    "",
    "RMSE",
    "CRPS [95 %]",
    "Q-Q RMSE",
    "P99",
    "P99.9",
    "spectrum, dB",
    "FSS {}",
    "S, A, L",
    "spread/skill",
    "block means",
)
REALISM = {  # titles of further columns, where the scores have them, and what each holds
    "judges": ("judges",),
    "seams": ("seams",),
    "streaks": ("streaks_fine", "streaks_broad"),
    "directions": ("directions",),
}
MEANS = {"crps", "lsd_db", "p999_ratio", "spread_skill", *(key for keys in REALISM.values() for key in keys)}


def main(argv=None):
    args = parse_args(argv)
    try:
        args.report(args)
    except (OSError, LookupError, ValueError) as fault:
        sys.exit(f"error: {fault}")


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reports = parser.add_subparsers(title="reports", required=True, metavar="REPORT")

    def add(name, report, words):
        sub = reports.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        sub.set_defaults(report=report)
        return sub

    sub = add("packages", report_packages, "end with 1 and one line where Python packages are missing")
    sub.add_argument("names", nargs="+", metavar="NAME", help="a package as it is imported, such as netCDF4")
    sub.add_argument(
        "--advice",
        metavar="WORDS",
        default="install the rest: bash jobs/environment.sh, or pip install -r requirements.txt",
        help="what the line tells the reader to do (default: %(default)s)",
    )
    sub = add("curve", report_curve, "draw the scores and losses of a training as a picture")
    sub.add_argument("folder", type=Path, help="the TensorBoard events of a model, such as runs/pre_srgan_x100")
    sub.add_argument("picture", type=Path, help="the PNG to write")
    sub = add("ablation", report_ablation, "print one Markdown row for each variant, the mean over its seeds")
    sub.add_argument("folder", type=Path, help="holds VARIANT-SEED.pth and VARIANT-SEED/scores.csv")
    sub = add("readme", report_readme, f"put scores into {DETAILS} and the two READMEs of the current folder")
    sub.add_argument("folder", type=Path, help="the folder of CASE/scores.csv, such as scratch/results")
    sub.add_argument("cases", nargs="+", metavar="CASE", help="a table to replace, such as daily_x40")
    return parser.parse_args(argv)


def read_scores(path):
    """The rows of a scores.csv by name, in its order: {name: {column: text}}."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def figure(row, key):
    """One score as the tables show it; empty where it is undefined."""
    value = float(row[key])
    if value != value:
        return ""
    if key == "conservation_mm":
        return f"{value:.0e}" if value < 0.01 else f"{value:.1f}"
    return f"{value:.2f}" if key in ("p99_ratio", "p999_ratio", "lsd_db", "spread_skill") else f"{value:.3f}"


def realism_of(rows):
    """The columns of REALISM, {title: figure of each row}, "fine/broad" for streaks; none where scores.csv has none."""
    if not all("judges" in row for row in rows):
        return {}
    return {title: [realism_figure(row, keys) for row in rows] for title, keys in REALISM.items()}


def realism_figure(row, keys):
    """The scores `keys` of a row with "/" between them; empty where they are undefined, or were not asked for."""
    values = [float(row.get(key, "nan")) for key in keys]
    return "/".join(f"{value:.2f}" for value in values if value == value)


# ---------------------------------------------------------------- packages, curve, ablation


def report_packages(args):
    missing = [name for name in args.names if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}; {args.advice}")


def report_curve(args):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from plots import plot_training, save_figure

    print(f"drew {save_figure(plot_training(args.folder), args.picture)}")


def report_ablation(args):
    import torch

    runs = {}  # {variant: [(state of the checkpoint, row of our members) of each seed]}
    for path in sorted(args.folder.glob("*-*/scores.csv")):
        name, _, seed = path.parent.name.rpartition("-")
        if seed.isdigit():
            file, rows = path.parent.with_name(f"{path.parent.name}.pth"), read_scores(path)
            state = torch.load(file, map_location="cpu", weights_only=True)
            runs.setdefault(name, []).append((state, rows.get("ensemble") or rows["one member"]))
    if not runs:
        raise LookupError(f"{args.folder}: expected folders VARIANT-SEED with scores.csv, such as recipe-0; found none")
    titles = ["", "weights", "seeds", "steps", "CRPS", "spectrum, dB", "P99.9", *REALISM, "spread/skill"]
    print("\n" + " | ".join(["|", *titles[1:]]) + " |")
    print("| --- " * len(titles) + "|")
    for name in sorted(runs, key=lambda name: (name != "recipe", name)):
        print("| " + " | ".join([name, *ablation_line(*zip(*runs[name], strict=True))]) + " |")


def ablation_line(states, rows):
    """The cells of one variant: means over its seeds; of the CRPS also the least and the largest."""
    mean = {key: sum(float(row[key]) for row in rows) / len(rows) for key in rows[0] if key in MEANS}
    weights = sum(tensor.numel() for tensor in states[0]["generator"].values()) / 1e6
    crps = [float(row["crps"]) for row in rows]
    return [
        f"{weights:.2f} M",
        str(len(rows)),
        f"{sum(state['step'] for state in states) / len(states):.0f}",
        f"{mean['crps']:.3f}" + (f" [{min(crps):.3f}, {max(crps):.3f}]" if len(rows) > 1 else ""),
        *(figure(mean, key) for key in ("lsd_db", "p999_ratio")),
        *(realism_figure(mean, keys) for keys in REALISM.values()),
        figure(mean, "spread_skill"),
    ]


# ---------------------------------------------------------------- READMEs


def report_readme(args):
    found = {case: read_scores(args.folder / case / "scores.csv") for case in args.cases}
    made = {DETAILS: with_tables(DETAILS, found)} | {name: with_summary(name, found) for name in READMES}
    for name, text in made.items():  # all of them were made, so none is left behind
        Path(name).write_text(text, encoding="utf-8")
        print(f"put {len(found)} case(s) into {name}")


def with_tables(path, found):
    """The text of a file with the table of each case between `<!-- scores CASE -->` and `<!-- end CASE -->`."""
    text = Path(path).read_text(encoding="utf-8")
    for case, rows in found.items():
        first, last = f"<!-- scores {case} -->", f"<!-- end {case} -->"
        if text.count(first) != 1 or text.count(last) != 1:
            raise ValueError(f"{path}: expected {first} and {last} once each")
        before, rest = text.split(first)
        text = f"{before}{first}\n{score_table(rows)}\n{last}{rest.split(last)[1]}"
    return text


def with_summary(path, found):
    """The text of a README whose line "| `CASE` | words | ... |" keeps its two first cells and gets new figures."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for case, rows in found.items():
        at = [number for number, line in enumerate(lines) if line.startswith(f"| `{case}` |")]
        if len(at) != 1:
            raise ValueError(f"{path}: expected one line that begins with | `{case}` |, found {len(at)}")
        kept = lines[at[0]].split(" | ")[:2]
        lines[at[0]] = " | ".join([*kept, *summary_cells(rows)]) + " |"
    return "\n".join(lines)


def summary_cells(rows):
    """The scores of SUMMARY, of REALISM, and block means: each of bilinear, RainFARM and our ensemble, ours bold."""
    three = [rows[name] for name in METHODS]
    found = [[figure(row, key) for row in three] for key in SUMMARY]
    found += [[realism_figure(row, keys) for row in three] for keys in REALISM.values()]
    return [beside(figures) for figures in (*found, [figure(row, "conservation_mm") for row in three])]


def beside(figures):
    """Three figures in one cell, the last one bold, "-" for an empty one; "-" alone where all are empty."""
    if not any(figures):
        return "-"
    *others, ours = (text or "-" for text in figures)
    return ", ".join([*others, f"**{ours}**"])


def score_table(rows):
    """A Markdown table of every row of a scores.csv; FSS at the middle threshold and window, then any realism."""
    labels = [key for key in next(iter(rows.values())) if re.fullmatch(r"fss_.*px", key)]
    fss = labels[len(labels) // 2]
    head = [words.format(fss[4:].replace("mm_", " mm, ").replace("px", " px")) for words in COLUMNS]
    more = realism_of(rows.values())
    lines = [[*head, *more], ["---"] * len([*head, *more])]
    for number, (name, row) in enumerate(rows.items()):
        lines.append([*score_line(name, row, fss), *(cells[number] for cells in more.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def score_line(name, row, fss):
    """The cells of one row; those of our own model have a bold name."""
    low, high = (f"{float(row[f'crps_{end}']):.3f}" for end in ("low", "high"))
    return [
        f"**{name}**" if "ensemble" in name or "member" in name else name,
        figure(row, "rmse"),
        f"{figure(row, 'crps')} [{low}, {high}]",
        *(figure(row, key) for key in ("qq_rmse", "p99_ratio", "p999_ratio", "lsd_db", fss)),
        ", ".join(f"{float(row[f'sal_{part}']):.2f}" for part in "sal"),
        figure(row, "spread_skill"),
        figure(row, "conservation_mm"),
    ]


if __name__ == "__main__":
    main()
