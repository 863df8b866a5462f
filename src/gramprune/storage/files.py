"""Files and folders that are only ever whole under their final name, and the small JSON files among them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError

MARK = ".gramprune"  # in folders of ours
EXPLAINED = "What it has made in this folder, it may replace or remove; nothing else."
LARGE = 1 << 20  # bytes

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
def atomic_folder(
    folder: Path,
    record: Path | None = None,  # where it is kept which files are ours; by default `.gramprune` in the folder
    last: str = "",  # the file that says that the others are there
) -> Iterator[Path]:
    """A temporary folder beside `folder`, whose files take their places in it when the block ends well.

    What was put there this way before goes; what others have put there stays. Should the machine die meanwhile, files
    are missing, the last one among them: old and new ones never lie side by side.
    Raises GrampruneError, naming the path, when something that is not ours is in the way, the disk is full or cannot
    be written.
    """
    folder = Path(folder).resolve() if Path(folder).is_symlink() else Path(folder)
    record = record or folder / MARK
    with scratch_folder(folder) as part:
        yield part
        made = {path.name: _signature(path) for path in part.iterdir()}
        ours = _recorded(record, folder)
        if in_the_way := sorted(name for name in made.keys() - ours if os.path.lexists(folder / name)):
            raise GrampruneError(
                f"{folder / in_the_way[0]} is in the way: gramprune has not made it, or it was changed since; move it, "
                "or delete it if you do not need it."
            )
        folder.mkdir(exist_ok=True)
        _keep_record(record, {**ours, **made})
        for name in ours:
            (folder / name).unlink(missing_ok=True)
        for name in sorted(made, key=last.__eq__):
            os.replace(part / name, folder / name)
        _keep_record(record, made)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is needed for a while. It goes at the end, or after a kill when the next begins.

    Raises GrampruneError, naming `path`, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part = _temporary(path)
    with _said(path, part):
        try:
            _remove_leftovers(path)
            part.mkdir(parents=True)
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _recorded(record: Path, folder: Path) -> dict[str, str]:
    """By name, the signatures of the files that we have put into a folder and nobody has changed since."""
    with suppress(GrampruneError, LookupError, TypeError, AttributeError):  # no record, or not one of ours
        known = {name: sign for name, sign in read_json(record)["files"].items() if sign and Path(name).name == name}
        return {name: sign for name, sign in known.items() if _signature(folder / name) == sign}
    return {}


def _keep_record(record: Path, made: dict[str, str]) -> None:
    content = {"made by gramprune": EXPLAINED, "files": made}
    with suppress(GrampruneError):
        if read_json(record) == content:
            return
    write_json(record, content)


def _signature(path: Path) -> str:
    """Tells whether a file is still as it was, a large one by its size; nothing for what is no file."""
    if not path.is_file():
        return ""
    size = path.stat().st_size
    return f"{size} {hashlib.sha256(path.read_bytes()).hexdigest() if size <= LARGE else ''}".strip()


def check_places(folder: Path, places: Iterable[str]) -> None:
    """Raises GrampruneError if something is at one of these places of a folder that we have not made."""
    if (folder / MARK).exists():
        return
    if taken := sorted(place for place in places if os.path.lexists(folder / place)):
        raise GrampruneError(
            f"{folder / taken[0]} is in the way: gramprune has not made it, and would write there; choose another "
            "folder, or move it."
        )


def claim(folder: Path) -> None:
    """Make a folder one of ours, unless it is already. Raises GrampruneError if it cannot be written."""
    if not (folder / MARK).exists():
        write_json(folder / MARK, {"made by gramprune": EXPLAINED})


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
        if any(name in known or name.startswith((f"{part}{os.sep}", f"{path}{os.sep}")) for name in names):
            remedy = REMEDIES.get(error.errno or 0)
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
    from importlib.metadata import PackageNotFoundError, version  # every job imports this module; few ask this

    found = {}
    for package in ("gramprune", "torch", "transformers", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
