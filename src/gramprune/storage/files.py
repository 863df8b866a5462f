"""Files and folders that are only ever whole under their final name, and the small JSON files among them."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError

REMEDIES = {  # of what the system may say of a file that is written
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota there",
    errno.EFBIG: "raise your limit on the size of files (ulimit -f)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make its folder writable or set `results` to another"),
}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed and renamed to it when the block ends well, else removed.

    Raises GrampruneError, naming the file, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part = _temporary(path)
    with _said(path, part):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name, and its place, when the block ends well.

    Raises GrampruneError, naming the folder, when the disk is full or cannot be written.
    """
    part = _temporary(folder)
    with _said(folder, part):
        try:
            _remove_leftovers(folder)
            part.mkdir(parents=True)
            yield part
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.part")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of `path`; what other machines have, when untouched for a day."""
    for part in path.parent.glob(f".{escape(path.name)}.*@*.part"):
        pid, _, machine = part.name.removeprefix(f".{path.name}.").removesuffix(".part").partition("@")
        with suppress(OSError, ValueError):
            if machine == platform.node():
                left = not _runs(int(pid))
            else:
                left = time.time() - part.stat().st_mtime > 86400
            if left:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _runs(pid: int) -> bool:
    """Whether another process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return pid != os.getpid()


@contextmanager
def _said(path: Path, part: Path) -> Iterator[None]:
    """Turn the system's error about `path` or its temporary place into a sentence; others are not ours to explain."""
    try:
        yield
    except OSError as error:
        known = {str(place) for place in (path, part, path.parent)}
        names = [str(name) for name in (error.filename, error.filename2) if name is not None] or [str(part)]
        if any(name in known or name.startswith(f"{part}{os.sep}") for name in names):
            remedy = REMEDIES.get(error.errno)
            advice = f"; {remedy}, then run snakemake again" if remedy else ""
            raise GrampruneError(
                f"{path} could not be written: {error.strerror or error}{advice}; no other file was touched."
            ) from error
        raise


def write_json(path: Path | str, content: Any) -> None:
    """A small JSON file, indented for people, only ever whole under its name."""
    with atomic(Path(path)) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises GrampruneError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise GrampruneError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise GrampruneError(f"{path} is not valid JSON; delete it to have it made again.") from error


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result, read without importing them."""
    found = {}
    for package in ("gramprune", "torch", "transformers", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
