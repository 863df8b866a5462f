"""Files and folders that are only ever whole under their final name, and the small JSON files among them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed and renamed to it when the block ends well, else removed.

    Raises GrampruneError, naming the file, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _said(path, part):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    with _said(folder, part):
        try:
            part.mkdir(parents=True)
            yield part
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _said(path: Path, part: Path) -> Iterator[None]:
    """Turn the system's error about `path` or its temporary place into a sentence; others are not ours to explain."""
    try:
        yield
    except OSError as error:
        known = {str(place) for place in (path, part, path.parent)}
        names = [str(name) for name in (error.filename, error.filename2) if name is not None] or [str(part)]
        if any(name in known or name.startswith(f"{part}{os.sep}") for name in names):
            raise GrampruneError(
                f"{path} could not be written: {error.strerror or error}; no other file was touched."
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
