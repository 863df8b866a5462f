"""What a job that Snakemake has started says to the warm process, which does it: see warm.py.

Imports little: two processes are started for every job, and this is in the first.
"""

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import library  # noqa: F401

from gramprune import interrupt

ENVIRONMENT = "GRAMPRUNE_WARM"  # where jobs find the socket
STARTED = b"+"
GRACE = 5  # seconds that a fork has for ending by itself


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
            socket.send_fds(server, [f"{request['gpus']} {request['module']}".encode()], [file.fileno(), 1, 2])
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
        signal.signal(number, interrupt.as_ctrl_c)
    try:
        return server.recv(1)
    except KeyboardInterrupt:
        server.shutdown(socket.SHUT_WR)
        server.settimeout(2 * GRACE)
        with suppress(OSError):
            server.recv(1)
        return bytes([interrupt.INTERRUPTED])


@contextmanager
def short(path: str) -> Iterator[str]:
    """A socket's address in 107 bytes, which is all that it may have, however long its folder's path is."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)
