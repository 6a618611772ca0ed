"""The job scripts of jobs/, submitted to a real Slurm on one node (cluster.py); skipped where there can be none.

A small archive at 0.1 degree, with tiny models. Trainings are sent the signal of their time limit; Slurm's own
limit, whose signal may come half a minute early, ends a stand-in.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cluster import missing, missing_qsub, one_node, wait_for
from conftest import ROOT, TINY, make_archive, run

import utils

SECONDS = 600  # limit of every wait: a busy machine takes long to import torch
FOLDERS = [
    word for name in ("train", "eval", "obj") for word in (f"--{name}-folders", f"Data/Archive/Data{name.title()}")
]
TRAIN = ["--hr-step", "0.1", *map(str, TINY), "--epoch-steps", "4"]  # few validations: each draws figures
ONE = [*TRAIN, "--lr-step", "1", "--data-folder", "Data/Lists"]
LONG = [*ONE, "--content-steps", "150", "--epoch-steps", "75"]


class Slurm:
    """A cluster and a project folder on it."""

    def __init__(self, home, environment):
        self.home = home
        self.environment = environment | {"VENV": sys.prefix, "OMP_NUM_THREADS": "1", "GRACE": "5"}

    def call(self, *command, **variables):
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.home,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *words, **variables):
        return self.call("sbatch", "--parsable", *words, **variables).strip()

    def jobs(self, number):
        """What scontrol knows of a job, or of each task of an array."""
        text = self.call("scontrol", "--oneliner", "show", "job", number)
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines()]

    def states(self, number):
        return {job["JobState"] for job in self.jobs(number)}

    def log(self, name):
        return "\n".join(path.read_text() for path in sorted(self.home.glob(f"jobs/logs/{name}.out")))

    def ended(self, number, log="*"):
        """The states of a job once it has ended."""
        wait_for(
            lambda: not self.states(number) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"},
            SECONDS,
            lambda: f"job {number} is {self.states(number)}\n{self.log(log)[-4000:]}",
        )
        return self.states(number)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A small archive, its lists in Data/Lists, and a cluster on which the pipeline has been submitted."""
    reason = missing()
    if reason:
        pytest.skip(f"no Slurm: {reason}")
    home = tmp_path_factory.mktemp("cluster")
    shutil.copytree(ROOT / "jobs", home / "jobs", ignore=shutil.ignore_patterns("*.out"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        make_archive(home / "Data/Archive", train_days=3, eval_days=6, forecasts=2)
        run(1, *FOLDERS, "--output-folder", "Data/Lists")
    with one_node() as environment:
        slurm = Slurm(home, environment)
        slurm.chain, slurm.limited = submit_chain(slurm), submit_limited(home / "limited", environment)
        slurm.array = slurm.limited[0].submit("--array=0-2", "jobs/downscale.slurm", "3")  # minutes in the queue
        yield slurm


def submit_chain(slurm):
    """[job]: the pipeline on the archive, training by two tasks and the evaluation days shared by an array of two."""
    said = slurm.call(
        "bash",
        "jobs/pipeline.slurm.sh",
        "--account=rain",
        ARGS1=" ".join(FOLDERS),
        ARGS2=" ".join(TRAIN),
        ARGS5="--hr-step 0.1",
        SHARDS="2",
        SUBMIT2="--ntasks-per-node=2 --gpus-per-node=2",
    )
    numbers, stages = zip(*re.findall(r"^(\d+)  (\d)", said, re.M), strict=True)
    assert stages == ("1", "2", "5", "3", "3", "4", "4")
    return numbers


def submit_limited(home, environment):
    """(Slurm, job) of a stand-in for stage 2: its two tasks wait until Slurm says that the time is over.

    One of them ends seconds before the other. The stand-in for stage 3 goes back to the queue in that task of an array
    whose job has the number of the array.
    """
    shutil.copytree(ROOT / "jobs", home / "jobs", ignore=shutil.ignore_patterns("*.out"))
    (home / "2train.py").write_text(
        "import os, signal, sys, time\n"
        "rank = int(os.environ.get('RANK', 0))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (time.sleep(3 * rank), sys.exit(138)))\n"
        "if 'fail' in sys.argv and rank == 1: sys.exit('a cause')\n"
        "if 'limit' in sys.argv and 'RESTARTS' not in os.environ: os.kill(os.getppid(), signal.SIGUSR1)\n"
        "time.sleep(0 if {'SLURM_RESTART_COUNT', 'RESTARTS'} & set(os.environ) else 110)\n"
    )
    (home / "3downscale_eval.py").write_text(
        "import os, signal, sys, time\n"
        "print('restarts', os.environ.get('SLURM_RESTART_COUNT', '0'), *sys.argv[1:])\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))\n"
        "job, array, again = map(os.environ.get, ('SLURM_JOB_ID', 'SLURM_ARRAY_JOB_ID', 'SLURM_RESTART_COUNT'))\n"
        "if job == array and not again:\n"
        "    time.sleep(3), os.kill(os.getppid(), signal.SIGUSR1)  # as at its time limit\n"
        "    time.sleep(60)\n"
        "time.sleep(8 if '0/3' in sys.argv else 0)\n"
    )
    slurm = Slurm(home, environment)
    # the header asks for the signal 120 s before the limit
    return slurm, slurm.submit("--time=2", "--ntasks-per-node=2", "jobs/train.slurm")


@pytest.fixture(scope="module")
def chain(slurm):
    """The cluster, the pipeline having ended."""
    slurm.ended(slurm.chain[-1])
    return slurm


def test_a_stage_that_fails_stops_those_behind_it(chain):  # whose stage 1 writes to the same folder
    said = chain.call("bash", "jobs/pipeline.slurm.sh", ARGS1="--train-folders nowhere", SHARDS="2")
    first, *behind = re.findall(r"^(\d+)  \d", said, re.M)
    assert chain.ended(first) == {"FAILED"}
    assert "error: nowhere" in chain.log(f"stage-{first}")
    for number in behind:
        wait_for(lambda number=number: chain.states(number) == {"CANCELLED"}, 60, lambda: chain.call("squeue"))
        assert not chain.log(f"*-{number}*")


def running(slurm, number, log):
    """Waits until a training run has validated once."""
    wait_for(
        lambda: "step 75/150" in slurm.log(log), SECONDS, lambda: f"{slurm.states(number)} {slurm.log(log)[-3000:]}"
    )


def test_a_time_limit_saves_and_resumes_exactly(slurm, monkeypatch):
    number = slurm.submit("jobs/train.slurm", *LONG, "--checkpoint", "Data/limit.pth")
    log = f"train-{number}"
    running(slurm, number, log)
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    monkeypatch.chdir(slurm.home)
    run(2, *LONG, "--checkpoint", "Data/unbroken.pth")  # while the job waits for its second start
    assert slurm.ended(number, log) == {"COMPLETED"}, slurm.log(log)
    saved = int(re.search(r"limit.pth at step (\d+) of 150", slurm.log(log))[1])
    assert "--resume --checkpoint Data/limit.pth" in slurm.log(log)
    assert 75 <= saved < 150 and f"going on from step {saved} of 150" in slurm.log(log)
    assert slurm.jobs(number)[0]["Restarts"] == "1"
    one, two = (utils.load_checkpoint(f"Data/{name}.pth") for name in ("unbroken", "limit"))
    assert one["step"] == two["step"] == 150
    for part in ("generator", "discriminator"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())
    assert all(torch.equal(v, two["averaged"]["weights"][k]) for k, v in one["averaged"]["weights"].items())


def test_two_tasks_save_and_resume_and_one_that_dies_ends_the_job_with_the_cause(slurm):
    number = slurm.submit("--ntasks-per-node=2", "jobs/train.slurm", *LONG, "--checkpoint", "Data/dies.pth")
    log = f"train-{number}"
    running(slurm, number, log)
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: "going on from step" in slurm.log(log), SECONDS, lambda: slurm.log(log)[-3000:])
    assert slurm.log(log).count("ended by SIGUSR1") == 1  # one of the two says it for both
    os.kill(task_of(number, 1), signal.SIGKILL)
    wait_for(lambda: slurm.states(number) == {"FAILED"}, 90, lambda: slurm.log(log))
    assert "task 1: Killed" in slurm.log(log) and re.search(r"body: ended with 1\d\d", slurm.log(log))


def task_of(number, rank):
    """The process of a task of a job."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if {f"SLURM_JOB_ID={number}".encode(), f"RANK={rank}".encode()} <= set(words):
            return int(path.parent.name)
    raise AssertionError(f"job {number} has no process of rank {rank}")


def test_a_task_that_fails_ends_one_that_hangs(slurm):
    limited, _ = slurm.limited
    number = limited.submit("--ntasks-per-node=2", "jobs/train.slurm", "fail")
    assert limited.ended(number) == {"FAILED"}
    said = limited.log(f"train-{number}")
    assert "a cause" in said and "task 1: Exited with exit code 1" in said and "body: ended with 137" in said, said


def test_sbatch_reads_the_directives_of_a_pbs_script(slurm):
    """Slurm understands the simple #PBS lines; the body does the rest. It checks the script, not PBS."""
    words = " ".join([*ONE, "--checkpoint", "Data/pbs.pth"])
    number = slurm.submit("--output=jobs/logs/pbs.out", "--ntasks=1", "jobs/train.pbs", STAGE_ARGS=words)
    assert slurm.ended(number, "pbs") == {"COMPLETED"}, slurm.log("pbs")
    job = slurm.jobs(number)[0]
    assert (job["JobName"], job["TimeLimit"], job["NumNodes"]) == ("train", "1-00:00:00", "1")
    assert utils.load_checkpoint(slurm.home / "Data/pbs.pth")["step"] == 4


@pytest.fixture(scope="module")
def pbs(slurm):
    """The cluster; qsub submits to it, and its jobs have the variables of PBS."""
    reason = missing_qsub()
    if reason:
        pytest.skip(reason)
    return slurm


def test_the_pbs_pipeline_runs_through_a_qsub_over_slurm(pbs):
    """Options, dependencies, arrays and walltime as qsub takes them, without a PBS server."""
    home = pbs.home / "pbs"
    shutil.copytree(ROOT / "jobs", home / "jobs", ignore=shutil.ignore_patterns("*.out"))
    (home / "Data").mkdir()
    (home / "Data/Archive").symlink_to(pbs.home / "Data/Archive")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, home)
    said = Slurm(home, pbs.environment).call(
        *("bash", "jobs/pipeline.pbs.sh", "-q", "main", "-A", "rain"),
        AS_PBS="1",
        STAGES="1 2 3",
        ARGS1=" ".join(FOLDERS),
        ARGS2=" ".join([*TRAIN, "--lr-step", "1"]),
        SUBMIT2="-l walltime=01:00:00",
        SHARDS="2",
    )
    numbers, stages = zip(*re.findall(r"^(\d+)  (\d)", said, re.M), strict=True)
    assert stages == ("1", "2", "3", "3")
    pbs.ended(numbers[-1])
    jobs = [pbs.jobs(number) for number in numbers]
    logs = "\n".join(path.read_text() for path in sorted(home.glob("*.pbs.[eo]*")))
    assert {(job["JobState"], job["Account"]) for each in jobs for job in each} == {("COMPLETED", "rain")}, logs[-4000:]
    assert jobs[1][0]["TimeLimit"] == "01:00:00" and [len(each) for each in jobs] == [1, 1, 2, 1]
    assert {"--shard 0/2", "--shard 1/2"} <= set(re.findall(r"--shard \d/\d", logs)) and "note: the time" not in logs
    results = home / "Data/DataResults/ResultEval"
    assert len(list(results.glob("*_pre_sr.nc"))) == 6 and (results / "scores.csv").exists()


def test_a_pbs_job_at_its_time_limit_submits_the_one_that_goes_on(pbs):
    limited, _ = pbs.limited
    number = limited.call("qsub", "jobs/train.pbs", AS_PBS="1", STAGE_ARGS="limit").strip()
    assert limited.ended(number) == {"FAILED"}  # 138: it has saved
    said = (limited.home / f"train.pbs.o{number}").read_text()
    (next_one,) = re.findall(r"body: (\d+) goes on", said)
    assert limited.ended(next_one) == {"COMPLETED"}
    assert "start 2" in (limited.home / f"train.pbs.o{next_one}").read_text()


def test_a_slurm_cluster_that_sets_the_variables_of_pbs_is_a_slurm_cluster(pbs):
    """Without AS_PBS a job of qsub goes back to the queue by scontrol."""
    limited, _ = pbs.limited
    number = limited.call("qsub", "jobs/train.pbs", STAGE_ARGS="limit", MAX_RESTARTS="0").strip()
    assert limited.ended(number) == {"FAILED"}
    job = limited.jobs(number)[0]
    assert job["Restarts"] == "0" and "restarted 0 times" in Path(job["StdErr"]).read_text()


def test_the_chain_runs_in_order(chain):
    jobs = [chain.jobs(number) for number in chain.chain]
    logs = chain.log("*")
    assert {(job["JobState"], job["Account"]) for each in jobs for job in each} == {("COMPLETED", "rain")}, logs[-4000:]
    for before, after in zip(jobs, jobs[1:], strict=False):
        assert max(job["EndTime"] for job in before) <= min(job["StartTime"] for job in after)
    results = chain.home / "Data/DataResults"
    assert len(list(results.glob("ResultEval/*_pre_lr.nc"))) == len(list(results.glob("ResultEval/*_pre_hr.nc"))) == 6
    assert (
        len(list(results.glob("ResultEval/*_pre_sr.nc"))) == 6 and len(list(results.glob("ResultObj/*_pre_sr.nc"))) == 2
    )
    assert (results / "ResultEval/scores.csv").exists() and (results / "ResultObj/scores.csv").exists()


def test_an_array_makes_each_file_once(chain):
    shards = [chain.log(f"downscale-{chain.chain[3]}_{k}") for k in range(2)]
    made = [re.findall(r"ResultEval/(\d\d)_pre_sr.nc", log) for log in shards]
    assert [sorted(each) for each in made] == [["00", "02", "04"], ["01", "03", "05"]]
    assert "6 of 6 outputs" in chain.log(f"stage-{chain.chain[4]}")  # kept by the job that scores


def test_two_tasks_train_together(chain):
    log = chain.log(f"train-{chain.chain[1]}")
    assert "2 process(es)" in log and log.count("at step 4 of 4") == 2  # x10 and x4, each written by one process
    for name in ("pre_srgan_x10.pth", "pre_srgan_x4.pth"):
        assert utils.load_checkpoint(chain.home / "Data/SavedModels" / name)["step"] == 4


def test_slurm_itself_tells_a_run_that_its_time_is_over(slurm):
    limited, number = slurm.limited
    assert limited.ended(number) == {"COMPLETED"}, limited.log("*")
    assert limited.log(f"train-{number}").count("got USR1") == 1 and limited.jobs(number)[0]["Restarts"] == "1"


def test_a_task_of_an_array_that_goes_back_to_the_queue_goes_alone(slurm):
    """The task that bears the number of the array itself, at the end of its time: one other has ended, one runs."""
    (limited, _), number = slurm.limited, slurm.array
    log = f"downscale-{number}_2"
    wait_for(lambda: limited.log(log).count("body: ended with 0"), SECONDS, lambda: limited.log("*")[-4000:])
    assert limited.ended(number) == {"COMPLETED"}
    assert f"scontrol requeue {number}_2" in limited.log(log)
    assert {job["ArrayTaskId"]: job["Restarts"] for job in limited.jobs(number)} == {"0": "0", "1": "0", "2": "1"}
    for task in range(2):
        assert limited.log(f"downscale-{number}_{task}").count("restarts 0") == 1
