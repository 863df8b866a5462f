"""Tensors that are put aside for a while: in memory, or in files where there are too many."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from gramprune.storage.files import scratch_folder
from gramprune.storage.tensorfile import NAMES, Entry, read_tensor, to_bytes


class Shelf:
    """Tensors by place and name, until the end of a `with`; what is put in a place takes that of what was there.

    path: beside it is the folder of files, which goes at the end. Raises GrampruneError where they cannot be written.
    """

    def __init__(self, path: Path):
        self._path, self._stack = path, ExitStack()
        self._folder: Path | None = None
        self._held: dict[int, dict[str, Tensor]] = {}
        self._filed: dict[int, dict[str, tuple[Path, Entry]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.clear()
        self._stack.__exit__(kind, error, trace)

    def put(self, place: int, tensors: dict[str, Tensor], in_memory: bool) -> None:
        """Put tensors aside; in files without their device."""
        self._held.pop(place, None)
        if in_memory:
            self._held[place] = tensors
            return
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch_folder(self._path))
        filed = self._filed[place] = {}
        for number, (name, tensor) in enumerate(tensors.items()):
            path = self._folder / f"{place}-{number}"
            with open(path, "wb") as file:
                file.write(to_bytes(tensor))
            filed[name] = path, Entry(NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)

    def take(self, place: int) -> dict[str, Tensor]:
        """What was put in a place, once."""
        if place in self._held:
            return self._held.pop(place)
        return {name: read_tensor(path, entry) for name, (path, entry) in self._filed[place].items()}
