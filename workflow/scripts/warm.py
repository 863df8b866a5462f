"""Jobs from a process that has imported torch and transformers: on one machine, seconds less for each of them.

The Snakefile starts this program where jobs run on this machine and without a GPU. It waits at a Unix socket. A job
that Snakemake has started sends what it is to do, with its stdout and stderr; a fork of this process does that and
answers with its status. If one of the two is killed, so is the other: for Snakemake, and for who stops a job, they are
one. This process ends when Snakemake does; jobs under way go on, as they would without it.

    python warm.py FD       an open socket that listens; standard input stays open as long as this process is needed
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn

from work import interrupt, leave, unheard, work

from gramprune import machine
from gramprune.interrupt import INTERRUPTED

ENVIRONMENT = "GRAMPRUNE_WARM"  # where jobs find the socket
STARTED = b"+"
GRACE = 5  # seconds that a fork has for ending by itself


def start(path: str, **pipes: Any) -> subprocess.Popen:
    """Start the warm process, which lives until its standard input is closed; jobs may ask at once.

    The socket listens before the process has begun: a job that is sooner waits, and does not go without.
    """
    with socket.socket(socket.AF_UNIX) as door:
        with short(path) as address:
            door.bind(address)
        door.listen()
        program = [sys.executable, __file__, str(door.fileno())]
        return subprocess.Popen(program, stdin=subprocess.PIPE, pass_fds=[door.fileno()], **pipes)


def ask(request: dict[str, Any]) -> int | None:
    """Have a fork do a job (the arguments of `work`) and return its status, or None if there is no warm process.

    If there should be one, the request gets a note that says so.
    """
    if ENVIRONMENT not in os.environ:
        return None
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryFile("w+") as file:
        json.dump({**request, "folder": os.getcwd(), "environment": dict(os.environ)}, file)
        file.flush()
        try:
            with short(os.environ[ENVIRONMENT]) as address:
                server.connect(address)
            socket.send_fds(server, [request["module"].encode()], [file.fileno(), 1, 2])
            if server.recv(1) != STARTED:
                raise ConnectionError("it has ended")
        except OSError as error:  # as when something cannot be imported: this process will say what
            request["note"] = f"starts by itself, seconds slower: no warm process answers ({error.strerror or error})"
            return None
        status = answer(server)
    if not status:
        os.kill(os.getpid(), signal.SIGKILL)  # as happened to the fork
    return status[0]


def answer(server: socket.socket) -> bytes:
    """The fork's status; if this process is to end, so is the fork, which has a few seconds to remove what it began."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return server.recv(1)
    except KeyboardInterrupt:
        server.shutdown(socket.SHUT_WR)
        server.settimeout(2 * GRACE)
        with suppress(OSError):
            server.recv(1)
        return bytes([INTERRUPTED])


@contextmanager
def short(path: str) -> Iterator[str]:
    """A socket's address in 107 bytes, which is all that it may have, however long its folder's path is."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def serve(listening: int) -> None:
    """Fork for every job that asks, until standard input ends. Modules are imported when the first job needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for Snakemake and jobs
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks: they answer by themselves
    machine.set_environment(online=False)
    gc.disable()
    with socket.socket(fileno=listening) as door:
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            client, _ = door.accept()
            with client:
                module, files, _, _ = socket.recv_fds(client, 256, 3)
                if not module:  # killed before it could say
                    continue
                load(module.decode())
                if os.fork() == 0:
                    door.close()
                    attend(client, *files)
            for file in files:
                os.close(file)


def load(stage: str) -> None:
    """Import a stage, and what those that have a model import when they open it."""
    import_module(stage)
    if "transformers" in sys.modules:
        import_module("transformers.generation")
        import_module("transformers.modeling_utils")
    gc.freeze()  # a fork that collects garbage would have a copy of every page that holds an object


def attend(client: socket.socket, request: int, stdout: int, stderr: int) -> NoReturn:
    """In the fork: do what is asked for, as the process would that asks."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    with open(request) as file:
        file.seek(0)
        asked = json.load(file)
    os.environ.clear()
    os.environ.update(asked.pop("environment"))
    os.chdir(asked.pop("folder"))
    try:
        client.sendall(STARTED)
    except OSError:  # who asked has ended
        leave(INTERRUPTED)
    threading.Thread(target=end_with, args=(client,), daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(asked["threads"])
    status = work(**asked)
    unheard()  # who asked may end as soon as it knows
    with suppress(OSError):  # who asked has ended
        client.sendall(bytes([status]))
    leave(status)


def end_with(client: socket.socket) -> None:
    """End this process when the one that asked has ended, or is to: first as Ctrl-C does."""
    client.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
