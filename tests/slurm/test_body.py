"""The shared body of the job scripts and the PBS scripts, run directly: no scheduler is needed, and no PBS server was
ever at hand, so qsub, qstat and qalter are stand-ins that write down how they were called."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import wait_for
from conftest import ROOT, TINY, make_archive, run

import utils

SECONDS = 120  # limit of every wait
SCRIPTS = ("train", "downscale", "stage")
# Says what it was given and waits to be told to save, or does what FATE says of its rank.
PYTHON = r"""
import os, signal, sys, time
rank = os.environ.get("RANK", "-")
words = ["rank", rank, "of", os.environ.get("WORLD_SIZE", "-"), "threads", os.environ["OMP_NUM_THREADS"], *sys.argv[1:]]
os.write(1, (" ".join(words) + "\n").encode())
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
fate = dict(word.split("=") for word in os.environ.get("FATE", "").split()).get(rank, "0")
if fate == "deaf":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
os.write(1, b"ready\n")
time.sleep(60) if fate in ("wait", "deaf") else sys.exit(int(fate))
"""


@pytest.fixture
def project(tmp_path):
    """A project whose stages are stand-ins, and qsub, qstat and qalter in its bin."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("*.out"))
    for name in ("1create_data_lists", "2train", "3downscale_eval"):
        (tmp_path / f"{name}.py").write_text(PYTHON)
    (tmp_path / "bin").mkdir()
    for name, answer in (
        ("qsub", "echo 77.server"),
        ("qalter", ""),
        (
            "qstat",
            "printf '    Resource_List.walltime = 00:30:00\\n    depend = beforeok:71.srv@srv\\n\\t:72.srv@srv\\n'",
        ),
    ):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\necho "{name} $*" "args=$STAGE_ARGS restarts=$RESTARTS" >>calls\n{answer}\n')
        command.chmod(0o755)
    return tmp_path


def environment(project, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PBS")) and k != "OMP_NUM_THREADS"}
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    return kept | {"PATH": path, "VENV": sys.prefix} | variables


def pbs(project, tasks=1, **variables):
    """The environment of a PBS job of this project."""
    (project / "nodes").write_text("here\n" * tasks)
    job = {"PBS_JOBID": "70.srv", "PBS_O_WORKDIR": str(project), "PBS_NODEFILE": str(project / "nodes"), "NCPUS": "4"}
    return environment(project, **job, **variables)


def execute(project, *command, env, code=0):
    """Output of a command that must end with this code."""
    return signalled(project, None, env=env, code=code, command=command)


def signalled(project, number, *, env, code, command=("jobs/train.pbs",)):
    """The same; the job is sent a signal once all its processes stand ready. Nothing of it outlives the call."""
    with (project / "log").open("w") as log:
        job = subprocess.Popen(
            ["bash", *command],
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    said = (project / "log").read_text
    try:
        if number:
            tasks = Path(env["PBS_NODEFILE"]).read_text().count("here")
            wait_for(lambda: said().count("ready") == tasks or job.poll() is not None, SECONDS, said)
            job.send_signal(number)
        assert job.wait(timeout=SECONDS) == code, said()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return said()


def calls(project):
    path = project / "calls"
    return path.read_text().splitlines() if path.exists() else []


# ---------------------------------------------------------------- environment


def test_a_missing_environment_is_an_error_that_says_what_to_run(project):
    said = execute(project, "jobs/train.pbs", env=pbs(project, VENV="none"), code=2)
    assert "no Python environment in none" in said and "bash jobs/environment.sh" in said
    (project / "bare/bin").mkdir(parents=True)
    (project / "bare/bin/python").write_text('#!/bin/sh\nexec /usr/bin/env python3 -S -I "$@"\n')
    (project / "bare/bin/python").chmod(0o755)
    said = execute(project, "jobs/train.pbs", env=pbs(project, VENV="bare"), code=2)
    assert "lacks torch" in said and "bash jobs/environment.sh" in said


def test_modules_and_conda_are_entered(project):
    (project / "init").mkdir()
    (project / "init/bash").write_text('module() { [ "$2" != gone ] || return 1; echo "module $*"; }\n')
    (project / "bin/conda").write_text(f'#!/bin/sh\necho "{project}"\n')
    (project / "bin/conda").chmod(0o755)
    (project / "etc/profile.d").mkdir(parents=True)
    (project / "etc/profile.d/conda.sh").write_text(
        f'conda() {{ [ "$2" = rain ] || return 1; echo "conda $*"; PATH={sys.prefix}/bin:$PATH; }}\n'
    )
    names = {"MODULESHOME": str(project), "VENV": "none"}
    said = execute(project, "jobs/train.pbs", env=pbs(project, MODULES="python cuda/12", CONDA_ENV="rain", **names))
    assert "module load python cuda/12" in said and "conda activate rain" in said and "ready" in said
    said = execute(project, "jobs/train.pbs", env=pbs(project, MODULES="gone", **names), code=2)
    assert "error: 'module load gone' failed" in said
    said = execute(project, "jobs/train.pbs", env=pbs(project, CONDA_ENV="other", **names), code=2)
    assert "error: conda environment other" in said


def test_outside_a_job_or_without_a_stage_the_body_says_what_to_do(project):
    assert "sbatch or qsub" in execute(project, "jobs/body.sh", "2", env=environment(project), code=2)
    assert "found: --members 8" in execute(
        project, "jobs/downscale.pbs", env=pbs(project, STAGE_ARGS="--members 8"), code=2
    )


# ---------------------------------------------------------------- processes and signals


def test_arguments_reach_the_stage(project):
    words = execute(project, "jobs/train.pbs", env=pbs(project, STAGE_ARGS="--lr-step 1 --region all"))
    assert "rank - of - threads 4 --lr-step 1 --region all --resume" in words
    words = execute(project, "jobs/train.pbs", env=pbs(project, ANEW="1"))
    assert "threads 4\n" in words
    assert "--resume" in execute(project, "jobs/train.pbs", env=pbs(project, ANEW="1", RESTARTS="1"))


def test_one_process_for_each_task_of_the_node_file(project):
    assert "rank 0 of 2 threads 1" in execute(project, "jobs/train.pbs", env=pbs(project, 2, OMP_NUM_THREADS="1"))
    words = execute(project, "jobs/train.pbs", env=pbs(project, 2, OMP_NUM_THREADS="8"))  # what PBS says for them all
    assert {"rank 0 of 2 threads 2 --resume", "rank 1 of 2 threads 2 --resume"} <= set(words.splitlines())
    env = pbs(project) | {"PBS_NODEFILE": str(project / "two")}
    (project / "two").write_text("here\nthere\n")
    assert "2 hosts in the job" in execute(project, "jobs/train.pbs", env=env, code=2)
    assert "one process a job" in execute(project, "jobs/stage.pbs", env=pbs(project, 2, STAGE_ARGS="1"), code=2)


def test_a_process_that_fails_ends_the_others_with_its_code(project):
    said = execute(project, "jobs/train.pbs", env=pbs(project, 3, FATE="0=deaf 1=7 2=wait", GRACE="1"), code=7)
    assert re.search(r"process \d+ ended with 7", said)
    assert not calls(project) or "qsub" not in calls(project)[-1]


def test_near_its_time_limit_a_run_saves_and_another_takes_its_place(project):
    env = pbs(project, 2, FATE="0=wait 1=wait", STAGE_ARGS="--lr-step 1", QSUB_OPTIONS="-q gpu -A rain", RESTARTS="2")
    said = signalled(project, signal.SIGUSR1, env=env, code=138)
    assert "got USR1" in said and "77.server goes on" in said
    took, *moved = [line for line in calls(project) if not line.startswith("qstat")]
    assert took.startswith("qsub -q gpu -A rain jobs/train.pbs") and "args=--lr-step 1 restarts=3" in took
    assert [line.split(" args=")[0] for line in moved] == [
        "qalter -W depend=afterok:77.server 71.srv",
        "qalter -W depend=afterok:77.server 72.srv",
    ]


@pytest.mark.parametrize("limit", [{"PBS_WALLTIME": "1800"}, {}])
def test_the_body_keeps_the_time_of_a_pbs_job(project, limit):
    env = pbs(project, FATE="-=wait", SAVE_SECONDS="1799", **limit)
    assert "got USR1 after 1 s" in execute(project, "jobs/train.pbs", env=env, code=138)
    said = execute(project, "jobs/train.pbs", env=env | {"SAVE_SECONDS": "1800"}, code=2)
    assert "the job has 1800 s" in said and "longer walltime" in said


def test_a_run_does_not_restart_for_ever(project):
    said = signalled(project, signal.SIGUSR1, env=pbs(project, FATE="-=wait", RESTARTS="3", MAX_RESTARTS="3"), code=2)
    assert "restarted 3 times" in said and not any(line.startswith("qsub") for line in calls(project))


def test_a_stage_that_cannot_go_on_asks_for_more_time(project):
    env = pbs(project, FATE="-=wait", STAGE_ARGS="1", SAVE_SECONDS="1799")
    assert "longer time limit" in execute(project, "jobs/stage.pbs", env=env, code=2)


def test_a_cancelled_run_saves_and_stays_away(project):
    said = signalled(project, signal.SIGTERM, env=pbs(project, FATE="-=wait"), code=143)
    assert "ended by TERM" in said and not any(line.startswith("qsub") for line in calls(project))


def test_tasks_of_a_pbs_array_share_the_list(project):
    array = {"PBS_ARRAY_INDEX": "1", "STAGE_ARGS": "3 --members 8"}
    assert "--members 8 --shard 1/4" in execute(project, "jobs/downscale.pbs", env=pbs(project, SHARDS="4", **array))
    assert "SHARDS is not set" in execute(project, "jobs/downscale.pbs", env=pbs(project, **array), code=2)
    assert "qsub -J 0-0" in execute(project, "jobs/downscale.pbs", env=pbs(project, SHARDS="1", **array), code=2)
    assert "does not share" in execute(
        project, "jobs/train.pbs", env=pbs(project, PBS_ARRAY_INDEX="0", SHARDS="2"), code=2
    )


def test_the_pbs_pipeline_submits_each_stage_behind_the_one_before(project):
    variables = {
        "ARGS2": "--lr-step 1",
        "ARGS3": "--members 8 --overwrite",
        "SUBMIT2": "-l walltime=48:00:00",
        "SHARDS": "2",
    }
    said = execute(project, "jobs/pipeline.pbs.sh", "-q", "gpu", env=environment(project, **variables))
    assert [line.split()[1] for line in said.splitlines()] == ["1", "2", "5", "3", "3", "4", "4"]
    behind = "-W depend=afterok:77.server"
    assert [line.split(" restarts")[0] for line in calls(project)] == [
        "qsub -q gpu jobs/stage.pbs args=1",
        f"qsub -q gpu -l walltime=48:00:00 {behind} jobs/train.pbs args=--lr-step 1",
        f"qsub -q gpu {behind} jobs/stage.pbs args=5",
        f"qsub -q gpu {behind} -J 0-1 jobs/downscale.pbs args=3 --members 8 --overwrite",
        f"qsub -q gpu {behind} jobs/stage.pbs args=3 --members 8",
        f"qsub -q gpu {behind} -J 0-1 jobs/downscale.pbs args=4",
        f"qsub -q gpu {behind} jobs/stage.pbs args=4",
    ]


def test_two_processes_train_under_pbs(tmp_path, workdir):
    """The real stage, with the variables a PBS job has."""
    make_archive(tmp_path, train_days=2, eval_days=0, forecasts=0)
    run(1, "--train-folders", "DataTrain", "--output-folder", "Data/JsonPath")
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("*.out"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "nodes").write_text("here\nhere\n")
    variables = {
        "PBS_JOBID": "7.srv",
        "PBS_NODEFILE": str(tmp_path / "nodes"),
        "PBS_WALLTIME": "3600",
        "OMP_NUM_THREADS": "1",
    }
    words = ["--hr-step", 0.1, "--lr-step", 1, *TINY, "--checkpoint", tmp_path / "two.pth"]
    env = environment(tmp_path, **variables, STAGE_ARGS=" ".join(map(str, words)), PBS_O_WORKDIR=str(tmp_path))
    said = execute(tmp_path, "jobs/train.pbs", env=env)
    assert "2 process(es)" in said
    assert utils.load_checkpoint(tmp_path / "two.pth")["step"] == 4


# ---------------------------------------------------------------- the scripts


def directives(path):
    """What a job script asks for, in one form for Slurm and PBS."""
    text = path.read_text()
    asked = {}
    for line in re.findall(r"^#SBATCH --(.*)$", text, re.M):
        name, _, value = line.partition("=")
        names = {"job-name": "name", "ntasks-per-node": "tasks", "cpus-per-task": "cores", "gpus-per-node": "gpus"}
        asked[names.get(name, name)] = value or True
    if "cores" in asked:
        asked["cores"] = str(int(asked["cores"]) * int(asked["tasks"]))
    for letter, value in re.findall(r"^#PBS -(\w) ?(.*)$", text, re.M):
        if letter == "l":
            resources = [value] if "walltime" in value else value.replace("select", "nodes").split(":")
            names = {"ncpus": "cores", "mpiprocs": "tasks", "ngpus": "gpus", "walltime": "time"}
            asked |= {names.get(k, k): v for k, v in (word.split("=", 1) for word in resources)}
        else:
            asked[{"N": "name", "J": "array", "r": "requeue", "o": "output", "V": "export", "j": "join"}[letter]] = (
                value
            )
    asked["mem"] = asked["mem"].lower().removesuffix("b")
    return asked


@pytest.mark.parametrize("name", SCRIPTS)
def test_pbs_and_slurm_scripts_ask_for_the_same(name):
    slurm, torque = (directives(ROOT / f"jobs/{name}.{kind}") for kind in ("slurm", "pbs"))
    own = {"signal", "open-mode", "output", "requeue"}, {"export", "join", "output", "requeue"}
    assert {k: v for k, v in slurm.items() if k not in own[0]} == {k: v for k, v in torque.items() if k not in own[1]}
    assert slurm["requeue"] is True and torque["requeue"] == "y"
    assert slurm["output"].startswith("jobs/logs/") and torque["output"] == "jobs/logs/"
    assert slurm["signal"] == "B:USR1@120" and slurm["open-mode"] == "append"


@pytest.mark.parametrize("name", [f"{name}.{kind}" for name in SCRIPTS for kind in ("slurm", "pbs")])
def test_a_job_script_holds_directives_and_one_call(name):
    lines = (ROOT / "jobs" / name).read_text().splitlines()
    code = [line for line in lines if line and not line.startswith(("#", "cd "))]
    assert len(code) == 1 and code[0].startswith("exec bash jobs/body.sh")


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed: pip install -r tests/requirements.txt")
    scripts = [*ROOT.glob("jobs/*.*"), ROOT / "tests/run.sh", ROOT / ".ci/run"]
    names = [path for path in scripts if path.suffix in (".sh", ".slurm", ".pbs", "")]
    done = subprocess.run(["shellcheck", "-x", *names], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout
