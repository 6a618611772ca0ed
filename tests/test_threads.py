"""Laws of threads.py: how many cores are allowed, and which number of threads is taken; with a clock of its own."""

import os
import types

import pytest
import torch

import threads
from threads import Threads, allowed_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu.max": "10000 100000"}, 1),
        ({}, 4),
    ],
)
def test_cores_are_those_of_affinity_quota_and_slurm(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    for name, words in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{words}\n")
    assert allowed_cores() == cores
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert allowed_cores() == min(cores, 3)


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores with its own clock: `seconds` {threads: time of a piece}; work(chooser, n)."""
    machine = types.SimpleNamespace(now=0.0, set=1, seconds={}, used=[])
    monkeypatch.setattr(threads, "time", types.SimpleNamespace(monotonic=lambda: machine.now))
    monkeypatch.setattr(threads, "allowed_cores", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(machine, "set", number))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def work(chooser, pieces, size=1.0):
        for _ in range(pieces):
            with chooser.piece(size):
                machine.used.append(machine.set)
                machine.now += machine.seconds[machine.set] * size

    machine.work = work
    return machine


def test_the_quickest_number_of_threads_is_taken_and_said(machine, capsys):
    machine.seconds = {1: 1.0, 2: 0.6, 4: 0.35}
    chooser = Threads(None, "step")
    machine.work(chooser, 20)
    assert set(machine.used[:9]) == {1, 2, 4} and machine.used[9:] == [4] * 11
    assert capsys.readouterr().out.count("threads: 4, the quickest now (s a step: 1: 1, 2: 0.6, 4: 0.35)") == 1


def test_hopeless_numbers_are_tried_once_and_equal_ones_take_fewer(machine):
    machine.seconds = {1: 1.0, 2: 0.98, 4: 20.0}
    machine.work(Threads(None, "step"), 20)
    assert machine.used.count(4) == 1 and machine.used[-5:] == [1] * 5


def test_a_falling_pace_is_measured_again_but_not_at_any_price(machine):
    machine.seconds = {1: 1.0, 2: 0.6, 4: 0.35}
    chooser = Threads(None, "step")
    machine.work(chooser, 300)
    assert machine.set == 4
    machine.seconds = {1: 1.1, 2: 4.0, 4: 9.0}  # other work has begun
    machine.used.clear()
    machine.work(chooser, 30)
    assert machine.used.count(4) <= 11 and machine.set == 1
    machine.seconds = {1: 2.0, 2: 5.9, 4: 5.9}  # falls for all: measuring takes a tenth of the time
    machine.used.clear()
    machine.work(chooser, 1000)
    assert sum(number != 1 for number in machine.used) < 50
    machine.seconds = {1: 1.0, 2: 0.6, 4: 0.35}  # quiet again: found within five minutes, though nothing is slower
    machine.work(chooser, 400)
    assert machine.set == 4


def test_pieces_of_different_size_are_compared_by_their_work(machine):
    machine.seconds = {1: 1.0, 2: 0.6, 4: 0.8}
    chooser = Threads(None, "part")
    for k in range(20):
        machine.work(chooser, 1, size=1 + 5 * (k % 2))
    assert machine.used[-8:] == [2] * 8


def test_what_is_typed_and_the_environment_override(machine, monkeypatch):
    machine.seconds = {1: 1.0, 2: 0.1, 3: 1.0, 4: 0.1}
    machine.work(Threads(3, "step"), 20)
    assert set(machine.used) == {3}
    machine.work(Threads(None, "step", measure=False), 1)
    assert machine.used[-1] == 4  # one of several processes, or a GPU's: all cores
    machine.set = 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine.used.clear()
    machine.work(Threads(None, "step"), 20)
    assert set(machine.used) == {1}
    machine.work(Threads(2, "step"), 20)
    assert machine.used[-20:] == [2] * 20
