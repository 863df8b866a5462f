"""Jobs in a process that has imported torch and transformers: on one machine, seconds less for each of them.

The Snakefile starts this program where jobs run on this machine. It waits at a Unix socket. A job that Snakemake has
started sends what it is to do, with its stdout and stderr; another process does that and answers with its status. If
one of the two is killed, so is the other: for Snakemake, and for who stops a job, they are one. This program ends when
Snakemake does; jobs under way go on, as they would without it.

That other process is a fork of this one, which has imported what jobs need, where such forks are safe. A process that
has begun with a GPU must not be forked. There it is a worker, which imports, starts CUDA and claims a GPU for its first
job, and does one job after the other; after one that fails, or is killed, the next job has another worker.

    python warm.py FD HOW [STAGE]   an open socket that listens; `forks` or `workers`; what forks import before any job
                                    asks. Standard input stays open as long as this program is needed
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from ask_warm import GRACE, STARTED, short
from work import leave, work

from gramprune import interrupt, machine

IDLE = 2  # workers without a GPU that stay for later jobs; each has 400 MiB


def start(path: str, how: str = "forks", stage: str = "", **pipes: Any) -> subprocess.Popen:
    """Start the warm process, which lives until its standard input is closed; jobs may ask at once.

    The socket listens before the process has begun: a job that is sooner waits, and does not go without.
    """
    with socket.socket(socket.AF_UNIX) as door:
        with short(path) as address:
            door.bind(address)
        door.listen()
        program = [sys.executable, __file__, str(door.fileno()), how, stage]
        return subprocess.Popen(program, stdin=subprocess.PIPE, pass_fds=[door.fileno()], **pipes)


def serve(listening: int, how: str, stage: str = "") -> None:
    """Have every job that asks done, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for Snakemake and jobs
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks: they answer by themselves
    machine.set_environment(online=False)
    gc.disable()
    if stage and how == "forks":
        load(stage)
    workers = Workers()
    with socket.socket(fileno=listening) as door:
        while sys.stdin not in (ready := select.select([door, sys.stdin, *workers.busy], [], [])[0]):
            workers.look(ready)
            if door in ready:
                client, _ = door.accept()
                with client:
                    said, files, _, _ = socket.recv_fds(client, 256, 3)
                    gpus, _, module = said.decode().partition(" ")
                    if module and how == "workers":
                        workers.waiting.append((int(gpus), [os.dup(client.fileno()), *map(os.dup, files)]))
                    elif module:  # else killed before it could say
                        load(module)
                        if os.fork() == 0:
                            door.close()
                            leave(attend(client, *files))
                for file in files:
                    os.close(file)
            workers.hand_over(door)


class Workers:
    """Processes that do one job after the other, each with as many GPUs as its first one, and the jobs that wait."""

    def __init__(self) -> None:
        self.busy: dict[socket.socket, int] = {}  # how many GPUs each has
        self.idle: dict[socket.socket, int] = {}
        self.waiting: list[tuple[int, list[int]]] = []  # GPUs, the job's socket and its files

    def look(self, ready: list[Any]) -> None:
        """See which are done, and which have ended."""
        for worker in self.busy.keys() & set(ready):
            gpus = self.busy.pop(worker)
            try:
                done = bool(worker.recv(1))
            except OSError:
                done = False
            if done and (gpus or [*self.idle.values()].count(0) < IDLE):
                self.idle[worker] = gpus
            else:
                worker.close()  # and it ends, if it has not yet

    def hand_over(self, door: socket.socket) -> None:
        """Give the jobs that wait to workers that are idle, or to new ones; those for GPUs in their order."""
        full = False
        for job in [*self.waiting]:
            gpus, files = job
            worker = next((worker for worker, has in self.idle.items() if has == gpus), None)
            if worker is None and gpus:
                full = full or not self.make_room(gpus)
            if gpus and full:
                continue
            worker = worker or self.hire(door)
            self.idle.pop(worker, None)
            try:
                socket.send_fds(worker, [STARTED], files)
            except OSError:  # it has been killed: another, next time
                worker.close()
                continue
            self.busy[worker] = gpus
            self.waiting.remove(job)
            for file in files:
                os.close(file)

    def make_room(self, gpus: int) -> bool:
        """Whether so many GPUs are free, if need be when workers have gone that have no job."""
        there = max(gpus, len(machine.visible_gpus()))
        while sum(self.busy.values()) + sum(self.idle.values()) + gpus > there:
            worker = next((worker for worker, has in self.idle.items() if has), None)
            if worker is None:
                return False
            del self.idle[worker]
            worker.close()
        return True

    def hire(self, door: socket.socket) -> socket.socket:
        """A new worker, by the socket that it listens to."""
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            for other in (door, ours, *self.busy, *self.idle):
                other.close()
            for file in (file for _, files in self.waiting for file in files):
                os.close(file)
            labour(theirs)
        theirs.close()
        return ours


def labour(boss: socket.socket) -> NoReturn:
    """In a worker: do the jobs that are handed over, each as if it were the first, until one fails."""
    while True:
        word, files, _, _ = socket.recv_fds(boss, 1, 4)
        if not word:
            leave(0)
        client, *files = files
        status = attend(socket.socket(fileno=client), *files)
        if status:
            leave(status)
        for file in files:
            os.close(file)
        nowhere = os.open(os.devnull, os.O_WRONLY)  # who reads what the job has said waits for its end
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        gc.collect()
        machine.give_memory_back()
        boss.sendall(STARTED)


def load(stage: str) -> None:
    """Import a stage, and what those that have a model import when they open it."""
    import_module(stage)
    if "gramprune.model.loading" in sys.modules:
        sys.modules["gramprune.model.loading"].prepare()
    gc.freeze()  # a fork that collects garbage would have a copy of every page that holds an object


def attend(client: socket.socket, request: int, stdout: int, stderr: int) -> int:
    """Do what is asked for, as the process would that asks, and answer; the status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt.as_ctrl_c)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    with open(request, closefd=False) as file:
        file.seek(0)
        asked = json.load(file)
    os.environ.clear()
    os.environ.update(asked.pop("environment"))
    os.chdir(asked.pop("folder"))
    try:
        client.sendall(STARTED)
    except OSError:  # who asked has ended
        return interrupt.INTERRUPTED
    done = threading.Event()
    threading.Thread(target=end_with, args=(client, done), daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(asked["threads"])
    status = work(**asked)
    interrupt.unheard()  # who asked may end as soon as it knows
    done.set()
    with suppress(OSError):  # who asked has ended
        client.sendall(bytes([status]))
        client.shutdown(socket.SHUT_RDWR)
    return status


def end_with(client: socket.socket, done: threading.Event) -> None:
    """End this process when the one that asked has ended, or is to, before it is done: first as Ctrl-C does."""
    with client:
        client.recv(1)
    if done.is_set():
        return
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
