"""A real Slurm on this machine, for the tests: munge, slurmctld and slurmd from Debian packages, with stand-in GPUs.

with one_node() as environment: subprocess.run(["sbatch", ...], env=environment)
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
TORQUE = "slurm-wlm-torque"  # qsub and qstat, made of sbatch and squeue
# CPUs and memory are those of a GPU node, not of this machine, so that the scripts are submitted as they are.
CONF = """
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/run/munge.socket,cred_expire=3
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={home}/run/slurmctld.pid
SlurmdPidFile={home}/run/slurmd.pid
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdLogFile={home}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
MailProg=/bin/true
TaskProlog={home}/prolog
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} Port={node} CPUs=64 RealMemory=256000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Why no Slurm can be started here, in words; None where one can. Root gets the packages installed."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root (slurmd starts jobs as their user)"
    if not all(map(shutil.which, PROGRAMS)) and shutil.which("apt-get"):
        _install(*PACKAGES)
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"{', '.join(absent)} not found: apt-get install {' '.join(PACKAGES)}" if absent else None


def missing_qsub():
    """Why no PBS script can be handed to Slurm by a qsub of its own, in words; None where one can."""
    if not shutil.which("qsub") and shutil.which("apt-get"):
        _install(TORQUE)
    qsub = shutil.which("qsub")
    if not qsub or b"sbatch" not in Path(qsub).read_bytes():
        return f"no qsub over Slurm: apt-get install {TORQUE}"
    return None


def _install(*packages):
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*apt, *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


@contextlib.contextmanager
def one_node():
    """Starts the cluster, yields the environment its commands need, and leaves no process and no file behind."""
    home = Path(tempfile.mkdtemp(prefix="slurm-test-"))
    environment = os.environ | {"SLURM_CONF": str(home / "slurm.conf")}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a test run that is ended cleans up, too
    try:
        _start(home, environment)
        yield environment
    finally:
        _stop(home, environment)
        shutil.rmtree(home, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def wait_for(what, seconds, words):
    """Polls what() until it is true; words(): what to say where it is not in time."""
    until = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError(f"after {seconds} s: {words()}")
        time.sleep(0.2)
    return found


def _start(home, environment):
    home.chmod(0o755)  # munged refuses a socket in a private folder
    for name in ("run", "state", "log", "spool/localhost"):
        (home / name).mkdir(parents=True)
    for k in range(4):
        os.mknod(home / f"fakegpu{k}", 0o666 | 0o020000, os.makedev(1, 3))
    (home / "gres.conf").write_text(f"Name=gpu File={home}/fakegpu[0-3]\n")
    # PBS variables beside those of Slurm; with AS_PBS the job does not know that it is one of Slurm
    (home / "plugstack.conf").write_text("optional spank_pbs.so\n")
    (home / "nodes").write_text("localhost\n")
    (home / "prolog").write_text(
        f'#!/bin/sh\n[ -z "$AS_PBS" ] || echo "unset SLURM_JOB_ID\nexport PBS_NODEFILE={home}/nodes"\n'
    )
    (home / "prolog").chmod(0o755)
    controller, node = _free_ports(2)
    host = socket.gethostname().split(".")[0]
    (home / "slurm.conf").write_text(CONF.format(home=home, controller=controller, node=node, host=host))
    munge = {"key-file": "run/munge.key", "socket": "run/munge.socket", "pid-file": "run/munged.pid"}
    munge |= {"log-file": "log/munged.log", "seed-file": "run/munge.seed"}
    for command in (
        ["mungekey", "--create", f"--keyfile={home}/run/munge.key"],
        ["munged", *(f"--{name}={home}/{path}" for name, path in munge.items())],
        ["slurmctld", "-f", home / "slurm.conf"],
        ["slurmd", "-f", home / "slurm.conf", "-N", "localhost"],
    ):
        subprocess.run(command, env=environment, check=True, timeout=30, capture_output=True)
    wait_for(
        lambda: _says(["sinfo", "-h", "-o", "%T"], environment) == "idle",
        30,
        lambda: "no idle node\n" + "".join(path.read_text()[-2000:] for path in sorted(home.glob("log/*"))),
    )


def _stop(home, environment):
    """Ends the jobs, then the daemons; slurmd first would leave a job running."""
    _says(["scancel", "--user=root"], environment)
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: _says(["squeue", "-h"], environment) == "", 20, lambda: "jobs are left")
    for name in ("slurmd", "slurmctld", "munged"):
        try:
            number = int((home / f"run/{name}.pid").read_text())
        except (OSError, ValueError):
            continue
        for kind, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                os.kill(number, kind)
                wait_for(lambda number=number: not Path(f"/proc/{number}").exists(), seconds, lambda: "")
                break


def _says(command, environment):
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=15)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
