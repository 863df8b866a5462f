"""A throw-away Slurm on this machine: one node that claims more processors, memory and GPUs than there are."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

NODE, GPUS = "node", 4
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where daemons are is not on every user's path
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

# JobAcctGather…: a job beyond its --mem is killed, as control groups would do it.
# MinJobAge: what became of a job can still be asked for at the end of the tests.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
MinJobAge=3600
KillWait=2
GresTypes=gpu
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:fake:{gpus}
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE
"""


def missing() -> list[str]:
    """The programs that `cluster` needs and this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Yield the environment in which Slurm's commands speak to a cluster of our own; end it and its jobs after."""
    # Not below a test's folder: the path of a socket has 107 characters at most.
    temporary = tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)
    with temporary as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environment = configured(folder)

        def start(command: str, is_up: Callable[[], bool]) -> None:
            log = folder / f"{command.split()[0]}.log"
            stack.enter_context(daemon(command.split(), environment, log))
            until(is_up, f"{command.split()[0]} did not start:\n", log)

        socket_path = folder / "munge.socket"
        start(
            f"munged --foreground --force --num-threads=2 --key-file={folder}/munge.key --socket={socket_path} "
            f"--pid-file={folder}/munged.pid --seed-file={folder}/munge.seed",
            socket_path.exists,
        )
        start("slurmctld -D", lambda: bool(said(environment, "sinfo", "--noheader")))
        start(f"slurmd -D -N {NODE}", lambda: said(environment, "sinfo", "--noheader", "--format=%t") == "idle\n")
        stack.callback(end_jobs, environment)
        yield environment


def configured(folder: Path) -> dict[str, str]:
    """Write what Slurm reads; returns the environment that points to it."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    values = {"folder": folder, "host": host, "user": user, "ports": free_ports(2), "node": NODE, "gpus": GPUS}
    conf.write_text(SLURM_CONF.format(**values))
    for index in range(GPUS):
        (folder / f"gpu{index}").symlink_to("/dev/null")  # a GPU must be a device
    (folder / "gres.conf").write_text(f"NodeName={NODE} Name=gpu Type=fake File={folder}/gpu[0-{GPUS - 1}]\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    # Snakemake's plugin takes SLURM_CONF away from the srun that it starts in a job.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    others = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return others | {"SLURM_CONF": str(conf), "PATH": f"{srun.parent}:{PATH}"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def daemon(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A program in the foreground of a session of its own, ended by its process id."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_jobs(environment: dict[str, str]) -> None:
    """Cancel and kill what waits and runs."""
    said(environment, "scancel", f"--user={getpass.getuser()}")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == environment["SLURM_CONF"] and process.name() not in PROGRAMS[:3]:
                process.kill()
    with contextlib.suppress(TimeoutError):
        until(lambda: not said(environment, "squeue", "--noheader"), "jobs do not end", seconds=20)


def said(environment: dict[str, str], *command: str) -> str:
    """What a command printed; nothing where it failed."""
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def until(true: Callable[[], bool], otherwise: str, log: Path | None = None, seconds: float = 30) -> None:
    """Wait for something. Raises TimeoutError with a text, and a log's end, if it does not come."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise + (log.read_text(errors="replace")[-3000:] if log else ""))
        time.sleep(0.1)
