"""Speed and memory of every part, each ratio measured side by side in one run; prints a Markdown table.

Reads   --china DIR (a folder with DataTrain); rows that need it say so where it is absent. The others use random rain
Writes  nothing but a temporary folder

    python tests/benchmark.py                          # all rows, about ten minutes
    python tests/benchmark.py --rows dataset cache     # some of them
    python tests/benchmark.py --profile                # where the time of both steps and of a country goes
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
import downscaling  # noqa: E402
import models  # noqa: E402
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


def recorded(call):
    """(table of torch's operations, wall time) of a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
    return record.key_averages(), seconds


def convolution_rate(step):
    """(GFLOP of a call, its seconds in convolutions)."""
    with ConvolutionFlops() as counter:
        step()
    kinds = KINDS["convolutions, forward"] + KINDS["convolutions, backward"]
    return counter.total / 1e9, sum(e.self_cpu_time_total for e in recorded(step)[0] if e.key in kinds) / 1e6


KINDS = {  # operations of torch by what they are for
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::thnn_conv2d", "aten::_slow_conv2d_forward"),
    "convolutions, backward": ("aten::convolution_backward", "aten::_slow_conv2d_backward"),
    "activations, both ways": ("aten::leaky_relu", "aten::leaky_relu_", "aten::leaky_relu_backward"),
    "copies, zeros and sums": tuple(f"aten::{n}" for n in ("copy_", "add", "add_", "fill_", "zero_", "cat", "sum")),
    "products": tuple(f"aten::{n}" for n in ("mm", "bmm", "addmm", "mul", "mul_", "div", "div_")),
    "exponentials, logarithms, softmax": tuple(
        f"aten::{n}" for n in ("exp", "log", "log10", "_softmax", "_softmax_backward_data", "rsqrt", "amax")
    ),
    "random numbers of torch": ("aten::normal_", "aten::random_"),
}


def shares(call):
    """{what: share of the wall time of a call}, on one thread."""
    table, seconds = recorded(call)
    found = {what: sum(e.self_cpu_time_total for e in table if e.key in names) for what, names in KINDS.items()}
    inside = sum(e.self_cpu_time_total for e in table if e.key.startswith(("aten::", "Optimizer")))
    found["other operations of torch"] = inside - sum(found.values())
    found["outside torch (windows, noise by key, interpreter)"] = max(1e6 * seconds - inside, 0)
    return {what: spent / 1e6 / seconds for what, spent in found.items()}


def show_profile(scratch):
    """Print where the time of a content step, an adversarial step and 20 x 20 cells of a country goes."""
    torch.set_num_threads(1)
    lr = np.random.default_rng(0).gamma(0.3, 20, (20, 20)).astype(np.float32)
    generator = models.load_generator(utils.load_checkpoint(ROOT / "Data" / "SavedModels" / "daily_x100.pth"))
    calls = [partial(Run(scratch, adversarial).steps, 2 * critic.PENALTY_EVERY) for adversarial in (0, 1)]
    calls.append(lambda: [None for _ in downscaling.downscale(generator, lr)])
    for call in calls[:2]:
        call()  # memory and kernels are prepared
    found = [shares(call) for call in calls]
    print(
        "| where the time goes, one thread | content step | adversarial step | a country |\n| --- | --- | --- | --- |"
    )
    for what in found[0]:
        print(f"| {what} | " + " | ".join(f"{each[what]:.0%}" for each in found) + " |", flush=True)


def bench_step(args, scratch):
    """The training step, in both phases, and what share of the machine's matrix products its convolutions reach."""
    rows = []
    for words, adversarial in (("content", 0), ("adversarial", 1)):
        run = Run(scratch, adversarial)
        each = 2 * critic.PENALTY_EVERY  # steps: half of them coarse, and two with the penalty
        steps = partial(run.steps, each)
        seconds = median_seconds(steps) / each
        flops, spent = convolution_rate(steps)
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
    yield from rows


COUNTRY = """
import os, resource, sys, time, numpy as np
sys.path.insert(0, sys.argv[1])
import downscaling, models, utils
generator = models.load_generator(utils.load_checkpoint(sys.argv[2]))
rows, cols, members = map(int, sys.argv[4:])
lr = np.random.default_rng(0).gamma(0.3, 20, (rows, cols)).astype("f4")
lat, lon = (0.01 * np.arange(100 * n) for n in (rows, cols))
wall, cpu = time.perf_counter(), time.process_time()
with utils.NetCDFWriter(sys.argv[3], lat, lon, {}, members) as out:
    for where in downscaling.downscale(generator, lr, members=members):
        out.put(where[2], *where[:2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(time.perf_counter() - wall, time.process_time() - cpu, peak)
"""


def country(scratch, rows, columns, members=1):
    """(wall time, processor time, peak memory in GiB) of rows x columns LR cells, x100, into a NetCDF file."""
    model, out = ROOT / "Data" / "SavedModels" / "daily_x100.pth", Path(scratch) / "out.nc"
    words = [sys.executable, "-c", COUNTRY, str(ROOT), str(model), str(out), *map(str, (rows, columns, members))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [float(v) for v in done.stdout.split()]


def bench_country(args, scratch):
    """Whole China, 70-140E x 15-55N, one day, 7100 x 4100 pixels, into a file; and half of it."""
    (wall, cpu, memory), (half, _, _) = (country(scratch, 41, columns) for columns in (71, 36))
    yield (
        "whole China, 7100 x 4100 pixels, one member, x100",
        f"{wall:.0f} s ({cpu:.0f} s of processors), peak memory {memory:.1f} GiB; the area of 36 of 71 columns "
        f"{half:.0f} s",
    )


def bench_scaling(args, scratch):
    """Processor time and memory by pixels and by members, and the exponents."""
    for what, cases in (
        ("pixels", [(f"{n * n}", n * n, (5 * n, 5 * n, 1)) for n in (1, 2, 4, 8)]),
        ("members", [(f"{n}", n, (10, 10, n)) for n in (1, 4, 16)]),
    ):
        times = []
        for label, size, case in cases:
            _, cpu, memory = country(scratch, *case)
            times.append((size, cpu))
            words = f"{case[0]} x {case[1]} cells of 100 x 100 pixels, {case[2]} member(s)"
            yield f"{what} {label} times: {words}", f"{cpu:.1f} s of processors, peak memory {memory:.2f} GiB"
        slope = np.polyfit(*np.log(times[-3:]).T, 1)[0]
        yield f"exponent of processor time by {what}, last three", f"{slope:.2f}"


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
    "scaling": bench_scaling,
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
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and no other row")
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s)\n"
    )
    if args.profile:
        with tempfile.TemporaryDirectory() as scratch:
            show_profile(scratch)
        return
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
