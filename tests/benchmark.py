"""Speed and memory of every part, each ratio measured side by side in one run; prints a Markdown table.

Reads   --china DIR (a folder with DataTrain); rows that need it say so where it is absent. The others use random rain
Writes  nothing but a temporary folder

    python tests/benchmark.py                          # all rows, about ten minutes
    python tests/benchmark.py --rows dataset cache     # some of them
    python tests/benchmark.py --rows step --profile    # with the ten dearest operations of the training step
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import xarray as xr
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import critic  # noqa: E402
import datasets  # noqa: E402
import reader  # noqa: E402
import settings  # noqa: E402
import training  # noqa: E402
import utils  # noqa: E402

CELLS = 25  # LR cells of the 500 x 500 pixels of one sample


def median_seconds(function, repeat=5):
    """Median wall time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def train_list(folder, scratch, name):
    """A folder of lists with the NetCDF files of `folder` as its train list, made once."""
    where = Path(scratch) / name
    if not (where / "PreTrain.json").exists():
        records, faults = reader.inspect_files([path.as_posix() for path in sorted(Path(folder).glob("*.nc"))])
        assert not faults, faults[0]
        utils.write_lists(where, {"train": records}, {"train": [folder]})
    return where


def bench_cache(args, scratch):
    """Building the cache of decoded fields."""
    lists = train_list(args.china / "DataTrain", scratch, "cache")
    start = time.perf_counter()
    dataset = datasets.SRDataset(lists, "train")
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    datasets.SRDataset(lists, "train")
    again = time.perf_counter() - start
    yield f"building the cache of {len(dataset)} files", f"{seconds:.1f} s; opened again {again:.2f} s"


def bench_dataset(args, scratch):
    """SRDataset against opening, selecting and interpolating a file for each sample, as the earlier program did."""
    lists = train_list(args.china / "DataTrain", scratch, "cache")
    dataset = datasets.SRDataset(lists, "train")
    paths = dataset.files.paths
    lat, lon = dataset.plans[0].hr.lat, dataset.plans[0].hr.lon

    def plain(path):
        with xr.open_dataset(path, decode_times=False) as file:
            field = file[next(iter(file.data_vars))].squeeze()
            names = {d: "lat" if "lat" in d.lower() else "lon" for d in field.dims}
            field = field.rename({k: v for k, v in names.items() if k != v})
            return field.interp(lat=lat, lon=lon).transpose("lat", "lon").values

    def each(function, items):
        for item in items:
            function(item)

    slow = 20 / median_seconds(lambda: each(plain, paths[:20]), 5)
    fast = 2000 / median_seconds(lambda: each(dataset.__getitem__, [k % len(dataset) for k in range(2000)]), 5)
    yield (
        "`SRDataset` samples a second, 500 x 500, `interpolate`",
        f"{fast:.0f}, {fast / slow:.0f} times the {slow:.0f} of opening and `interp`",
    )


class Run:
    """A training of default settings at x100 on a field of random rain."""

    def __init__(self, scratch, adversarial=0, **changes):
        dataset, phases = rain_dataset(scratch), {"content_steps": 0 if adversarial else 10**6}
        train = settings.TrainConfig(**phases, adversarial_steps=10**6, valid_share=0.0, **changes)
        args = SimpleNamespace(amp="auto", init=None, vgg_weights=None, compile=False, data_folder=scratch)
        self.state = training.State(dataset.config, train, settings.GeneratorConfig(), args, training.Group("cpu"))
        self.loader = training.WindowLoader(self.state, dataset)

    def steps(self, number):
        for _ in range(number):
            training.train_step(self.state, self.loader)


def rain_dataset(scratch):
    """An SRDataset of one field of random rain."""
    side, folder = 1200, Path(scratch) / "rain"
    if not folder.is_dir():
        grid = reader.Grid(*map(Fraction, (40, -100, "0.01")), side, side)
        rain = np.random.default_rng(0).gamma(0.3, 3.0, grid.shape).astype(np.float32)
        field = xr.DataArray(rain, {"lat": grid.lat, "lon": grid.lon}, ("lat", "lon"), "tp", {"units": "mm"})
        folder.mkdir()
        field.to_netcdf(folder / "2023_08_01.nc")
        train_list(folder, scratch, "rain")
    return datasets.SRDataset(folder, "train", target="coarsen", region="all", lr_step=1)


def samples_a_step(state):
    """500 x 500 samples that a step is worth, by the cells it makes."""
    crop = max(1, round(state.train.crop / state.config.scale)) * state.config.scale
    return state.train.batch * crop**2 / 500**2


class ConvolutionFlops(TorchDispatchMode):
    """Adds up the arithmetic of every convolution, both ways (FlopCounterMode cannot follow autograd.grad)."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        if "convolution" in str(operation) and operation._overloadpacket in flop_registry:
            self.total += flop_registry[operation._overloadpacket](*args, **(kwargs or {}), out_val=made)
        return made


def convolution_rate(step, profile):
    """(GFLOP of a call, its seconds in convolutions, table of the dearest operations)."""
    with ConvolutionFlops() as counter:
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        step()
    names = (
        "aten::mkldnn_convolution",
        "aten::convolution_backward",
        "aten::thnn_conv2d",
        "aten::_slow_conv2d_forward",
    )
    table = record.key_averages()
    spent = sum(e.self_cpu_time_total for e in table if e.key in names) / 1e6
    return counter.total / 1e9, spent, table.table(sort_by="self_cpu_time_total", row_limit=10) if profile else ""


def bench_step(args, scratch):
    """The training step, in both phases, and what share of the machine's matrix products its convolutions reach."""
    rows, tables = [], []
    for words, adversarial in (("content", 0), ("adversarial", 1)):
        run = Run(scratch, adversarial)
        each = 2 * critic.PENALTY_EVERY  # steps: half of them coarse, and two with the penalty
        steps = partial(run.steps, each)
        seconds = median_seconds(steps) / each
        flops, spent, table = convolution_rate(steps, args.profile)
        flops, spent = flops / each, spent / each
        dtype = run.state.amp or torch.float32
        a = torch.randn(2048, 2048, dtype=dtype)
        peak = 2 * 2048**3 / median_seconds(lambda a=a: a @ a) / 1e9
        rows.append(
            (
                f"{words} step, x100, two members, a 500 x 500 sample",
                f"{seconds / samples_a_step(run.state):.2f} s ({seconds:.2f} s a step, "
                f"{flops:.0f} GFLOP in convolutions)",
            )
        )
        rows.append(
            (
                f"{words} step: convolutions against matrix products, {dtype}",
                f"{flops / spent:.0f} of {peak:.0f} GFLOP/s, {flops / spent / peak:.0%}; "
                f"{spent / seconds:.0%} of the step is convolutions",
            )
        )
        tables.append(table)
    yield from rows
    print("\n".join(filter(None, tables)))


def bench_country(args, scratch):
    """Whole China, 70-140E x 15-55N, one day, 7100 x 4100 pixels, into a file; and half of it."""
    generator = ROOT / "Data" / "SavedModels" / "daily_x100.pth"
    code = (
        "import sys, time, resource, numpy as np; sys.path.insert(0, sys.argv[1]);"
        "import downscaling, models, utils;"
        "state = utils.load_checkpoint(sys.argv[2]); g = models.load_generator(state);"
        "rows, cols = 41, int(sys.argv[4]); lr = np.random.default_rng(0).gamma(0.3, 20, (rows, cols)).astype('f4');"
        "out = np.lib.format.open_memmap(sys.argv[3], 'w+', 'f4', (rows * 100, cols * 100)); t = time.perf_counter();"
        "[out.__setitem__((r, c), s[0]) for r, c, s in downscaling.downscale(g, lr)];"
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    found = []
    for columns in (71, 36):
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT), str(generator), str(Path(scratch) / "out.npy"), str(columns)],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append([float(v) for v in done.stdout.split()])
    (seconds, memory), (half, _) = found
    yield (
        "whole China, 7100 x 4100 pixels, one member, x100",
        f"{seconds:.0f} s, peak memory {memory:.1f} GiB; the area of 36 of 71 columns {half:.0f} s",
    )


def bench_processes(args, scratch):
    """Training samples a second with 1, 2, 4, 8 processes of one thread, and what they tell one another."""
    code = (
        "import sys, time, torch; sys.path[:0] = sys.argv[1:3]; torch.set_num_threads(1); import benchmark;"
        "run = benchmark.Run(sys.argv[4], batch=int(sys.argv[3])); run.steps(2); run.state.bytes = 0;"
        "t = time.perf_counter(); run.steps(8); d = time.perf_counter() - t;"
        "run.state.group.rank or print('RESULT', 8 * int(sys.argv[3]) / d, run.state.bytes / 8)"
    )
    rain_dataset(scratch)  # makes the field
    rates = {}
    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=scratch, delete=False) as script:
        script.write(code)
    for n in args.processes:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        done = subprocess.run(
            [*command, script.name, str(ROOT), str(ROOT / "tests"), str(8 * n), str(scratch)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        rate, sent = map(float, next(line for line in done.stdout.splitlines() if "RESULT" in line).split()[-2:])
        rates[n] = rate
        yield (
            f"{n} process(es) of one thread, 8 samples each a step",
            f"{rate:.1f} samples/s, {rate / rates[args.processes[0]]:.2f} times one; "
            f"{sent / 1e6:.1f} MB averaged a step",
        )


ROWS = {
    "cache": bench_cache,
    "dataset": bench_dataset,
    "step": bench_step,
    "country": bench_country,
    "processes": bench_processes,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = ROOT.parent / "shared" / "data"
    parser.add_argument(
        "--china", type=Path, default=data / "china", help="folder with DataTrain (default: %(default)s)"
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), help="parts to measure")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of processes")
    parser.add_argument("--profile", action="store_true", help="print the dearest operations of the training step")
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s)\n"
    )
    print("| what | figure |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.rows:
            if name in ("cache", "dataset") and not (args.china / "DataTrain").is_dir():
                print(f"| {name} | not measured: no {args.china / 'DataTrain'} |")
                continue
            for what, figure in ROWS[name](args, scratch):
                print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
