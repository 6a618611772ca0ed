"""Threads that fit the machine: how many cores a process may use, and with how many threads it is quickest.

    threads = Threads(args.threads, "step")
    with threads.piece():
        train_step(state, loader)

A room of its own because utils.py is full. PyTorch is imported where it is used: --help of a stage answers at once.
"""

import collections
import contextlib
import os
import time
from pathlib import Path

import numpy as np

from utils import log

CGROUP = Path("/sys/fs/cgroup")  # the limits of this process's control group

__all__ = ["Threads", "allowed_cores"]


def allowed_cores():
    """Number of cores this process may use: by its affinity, the quota of its control group, SLURM_CPUS_PER_TASK."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((CGROUP / name).read_text() for name in names).split()
            found.append(int(quota) // int(period) if int(quota) > 0 else found[0])  # no quota: "max" or -1
    with contextlib.suppress(KeyError, ValueError):
        found.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(found))


class Threads:
    """Finds, while equal pieces of work are done, the number of torch's threads with which they are quickest.

    On a machine that other work shares, threads that wait for one another spin: two can take 20 times as long as one.
    So each number (1, 2, 4, ... allowed_cores()) does a few pieces, at the start, every five minutes, and where ten
    pieces took half as long again as was measured; what slower numbers waste is at most a tenth of the time.

    Args: number: what was typed, which stands, as OMP_NUM_THREADS does. unit: what a piece is called. measure: False
        where all cores are taken (one of several processes, or a GPU that does the work).
    Use: `with threads.piece(): ...`
    """

    def __init__(self, number, unit, *, measure=True):
        import torch

        cores, self.unit, self.set, self.pace, self.cost = allowed_cores(), unit, torch.set_num_threads, 0.0, 0.0
        self.counts = sorted({cores, *(2**k for k in range(cores.bit_length()))})
        fixed = number or os.environ.get("OMP_NUM_THREADS")
        if number or not fixed:
            self.set(number or cores)
        self.plan, self.recent, self.began = [], collections.deque(maxlen=10), time.monotonic()
        self.taken = self.times = None
        self.measured = bool(measure and not fixed and cores > 1)
        if self.measured:
            self._measure()

    @contextlib.contextmanager
    def piece(self, work=1.0):
        """Time a piece of this much work, and choose the number of threads of the next."""
        if self.plan:
            self.set(self.plan[0])
        began = time.monotonic()
        yield
        if self.measured:
            self._took((time.monotonic() - began) / work, time.monotonic())

    def _measure(self):
        self.plan, self.times, self.began = self.counts * 3, {}, time.monotonic()
        self.recent.clear()

    def _took(self, seconds, now):
        if not self.plan:
            self.recent.append(seconds)
            slower = len(self.recent) == 10 and sum(self.recent) > 15 * self.pace
            if now - self.began > 10 * self.cost and (slower or now - self.began > 300):
                self._measure()
            return
        number = self.plan.pop(0)
        self.times.setdefault(number, []).append(seconds)
        best = min(map(np.median, self.times.values()))
        self.plan = [n for n in self.plan if np.median(self.times.get(n, best)) <= 3 * best]  # the others are hopeless
        if not self.plan:
            self._choose()

    def _choose(self):
        """Take the fewest threads that are within a twentieth of the quickest, and say so where it is news."""
        paces = {number: float(np.median(times)) for number, times in sorted(self.times.items())}
        number = next(n for n, pace in paces.items() if pace <= 1.05 * min(paces.values()))
        self.set(number)
        wasted = 1 - paces[number] / np.mean([seconds for times in self.times.values() for seconds in times])
        self.pace, self.cost, self.began = paces[number], (time.monotonic() - self.began) * wasted, time.monotonic()
        if number != self.taken:
            words = ", ".join(f"{n}: {pace:.2g}" for n, pace in paces.items())
            log(f"threads: {number}, the quickest now (s a {self.unit}: {words}); --threads fixes the number")
        self.taken = number
