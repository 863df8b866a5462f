"""A folder of results is written by one Snakemake at a time, wherever it was typed; its own lock lies where that was.

Two in one folder of work are left to Snakemake, which tells apart what they make.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError

NOT_HERE = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}  # some shared file systems have no locks
_held: list[int] = []  # open files, whose locks end with the process, however it ends


def take(results: Path) -> None:
    """Lock a folder of results until this process ends.

    Raises GrampruneError, naming who holds it, if somebody else does, or it cannot be written.
    """
    path = results / "logs" / ".lock"
    own = {"host": platform.node(), "folder": os.getcwd(), "pid": os.getpid(), "since": time.strftime("%F %T")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        holder = _holder(file)
        together = all(holder.get(name) == own[name] for name in ("host", "folder"))
        if not _locked(file, fcntl.LOCK_EX, holder):
            if not together or not _locked(file, fcntl.LOCK_SH, holder):
                raise GrampruneError(_sentence(results, path, holder))
        else:
            with suppress(OSError):  # on a full disk the jobs say so
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(own).encode(), 0)
            atexit.register(_release, file, os.getpid())
            if not _locked(file, fcntl.LOCK_SH, {}):  # others from here may come in
                raise GrampruneError(_sentence(results, path, _holder(file)))
        _held.append(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise GrampruneError(f"{path} could not be written: {error.strerror}; make it writable.") from error


def _locked(file: int, kind: int, holder: dict[str, Any]) -> bool:
    """Whether a lock was to be had; where there are none, whether the holder on record has ended."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        return not _runs(holder)
    return True


def _runs(holder: dict[str, Any]) -> bool:
    """Whether the process on record may be running: on another machine nobody can tell."""
    if holder.get("host") != platform.node():
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return holder["pid"] != os.getpid()


def _holder(file: int) -> dict[str, Any]:
    """Who stands in the file; nobody, if it is empty or not ours."""
    with suppress(ValueError):
        found = json.loads(os.pread(file, 10_000, 0))
        if isinstance(found, dict) and isinstance(found.get("pid"), int):
            return found
    return {}


def _sentence(results: Path, path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, in {holder.get('folder', '?')}"
    return (
        f"{results} is being written by another snakemake ({who}, since {holder.get('since', '?')}): wait for it, or "
        f"set `results` to another folder. If it has ended for certain, delete {path}."
    )


def _release(file: int, pid: int) -> None:
    """Nobody is on record any more: where there are no locks, the next one need not ask."""
    if os.getpid() == pid:
        with suppress(OSError):
            os.ftruncate(file, 0)
