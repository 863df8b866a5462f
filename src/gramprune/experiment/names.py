"""Names and paths in the configuration: what may be one."""

from __future__ import annotations

import os
import re
from typing import Annotated
from unicodedata import category

from pydantic import AfterValidator, Field

from gramprune.errors import shorter
from gramprune.storage.fingerprint import short

NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$"  # no dot at the end: some file systems drop it
DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
LONGEST = 100  # characters of a name; files are named by it and more

Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST)]


def expanded(path: str) -> str:
    """A path as the user means it: `~` is the home folder; what is relative counts from where snakemake is typed.

    Raises ValueError for what cannot be a path.
    """
    if not path or any(category(character) in ("Cc", "Cs") for character in path):
        raise ValueError(f"{shorter(path)} is no path; give a folder or file")
    if any(len(part.encode()) > 255 for part in path.split("/")):
        raise ValueError(f"{shorter(path)} has a part of more than 255 bytes, which no file system takes; shorten it")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ValueError(f"there is no home folder {path.partition('/')[0]!r}; write out the path, or ./{path}")
    return found


Place = Annotated[str, AfterValidator(expanded)]
"""A file or folder of the user's, wherever one is named."""


def slug(text: str) -> str:
    """A name for a file that stands for a text: ASCII, not too long; empty if nothing is left."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("-._").rstrip(".")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{short(text)}"


def distinct(what: str, names: list[str], remedy: str) -> None:
    """Raises ValueError for a name that occurs twice, even with other capitals: some file systems see none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if names.count(name) > 1:
            raise ValueError(f"{what}: two have the name {name!r}; {remedy}")
        if other != name:
            raise ValueError(f"{what}: {other!r} and {name!r} are one name on some file systems; {remedy}")
