"""The processes that train together (torchrun), and the clock and the signals that end a run. training.py was full.

Reads and writes  nothing.

    from processes import Clock, Group
    group, clock = Group("auto"), Clock(minutes=20)
"""

import contextlib
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

import models
from utils import DataError

SAVING = 0.03  # minutes kept for the last checkpoint and the export
FITTING = 0.1  # share of the minutes kept for fitting the noise
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

__all__ = ["Clock", "Group"]


class Group:
    """The processes that train together (torchrun), or the only one."""

    def __init__(self, device):
        self.rank, self.size, self.local = (
            int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        cuda = models.find_device(device) == "cuda"
        self.device = torch.device("cuda", self.local) if cuda else torch.device("cpu")
        if self.size > 1 and not dist.is_initialized():
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)  # python's own would not run while this waits for the others
            dist.init_process_group("nccl" if cuda else "gloo")

    def mean(self, tensors):
        """Average tensors over the processes in place, as one message; returns its bytes."""
        if self.size == 1 or not tensors:
            return 0
        flat = self._reduce(torch.cat([t.reshape(-1) for t in tensors]), dist.ReduceOp.SUM)
        for tensor, part in zip(tensors, flat.div_(self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
        return flat.numel() * flat.element_size()

    def largest(self, number):
        """The largest of the processes' numbers."""
        value = torch.tensor([float(number)], device=self.device)
        return (self._reduce(value, dist.ReduceOp.MAX) if self.size > 1 else value).item()

    def share(self, count):
        """(first, number) of this process's part of `count` samples."""
        first = count * self.rank // self.size
        return first, count * (self.rank + 1) // self.size - first

    def end(self, code):
        """The exit code of this process; one of several ends here, all at the same time.

        It skips PyTorch's clean-up, in which one of eight runs with gloo was aborted (torch 2.14): a scheduler would
        take that for a failed training.
        """
        if self.size > 1:
            dist.barrier()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        return code

    def _reduce(self, flat, kind):
        try:
            dist.all_reduce(flat, kind)
        except RuntimeError as error:  # gloo and nccl, each in its own words
            raise DataError(
                f"process {self.rank} of {self.size} lost another one, whose own message says why "
                f"({str(error).splitlines()[0][:120]})"
            ) from None
        return flat


class Clock:
    """Ends a run after the current step: on SIGTERM, SIGUSR1 or SIGINT, or when the minutes of a model are over."""

    def __init__(self, minutes, began=None):
        self.began, self.allowed, self.signal = time.monotonic() if began is None else began, minutes, None
        for number in SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number, frame):
        self.signal = signal.Signals(number)

    def start(self, number):
        """Begin the next of `number` models that are still to be trained: each has an equal share of what is left."""
        self.started = time.monotonic()
        self.minutes = None if self.allowed is None else (self.allowed - (self.started - self.began) / 60) / number
        self.validated, self.one = 0.0, 0.0  # minutes: of all validations, of one
        self.fitting = FITTING * (self.minutes or 0.0)
        self.reserve = self.fitting  # kept for the end

    @contextlib.contextmanager
    def validation(self, share=1.0):
        """Time a validation, or a share of one: the next ones, and the last, are expected to take as long."""
        began = self.elapsed
        yield
        self.validated += self.elapsed - began
        self.one = (self.elapsed - began) / share
        tries = self.fitting if self.one <= self.fitting else 0.0  # the noise is fitted by validations
        self.reserve = self.one + tries + SAVING

    @property
    def elapsed(self):
        """Minutes since the start of this model."""
        return (time.monotonic() - self.started) / 60

    @property
    def over(self):
        return self.signal is not None or (self.minutes is not None and self.elapsed + self.reserve >= self.minutes)
