"""Safetensors files read and written in pieces, and only ever whole under their final name.

Why not the safetensors package: it writes tensors that are all in memory at once and reads through a memory map,
whose pages count as the job's memory. Here a file is written row by row (hidden states of a whole calibration set)
and any run of rows is read by itself. The format is a length, a JSON header and the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.storage.files import atomic

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ROOM = 128  # bytes that the metadata may grow by, per tensor, while a file is written
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
LFS_POINTER = b"version "  # how the text begins that Git leaves in the place of a large file


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file: `start` and `size` are bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What the first bytes of a file say."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    digest: str
    """sha256 of the header's bytes."""


def read_header(path: Path, remedy: str = "delete it to have it made again") -> Header:
    """The header of a safetensors file, checked against the file's length.

    remedy: what the user is to do with a file that is not whole; another one for files that are not ours.
    Raises GrampruneError if the file is missing, truncated, or not a safetensors file.
    """
    path = Path(path)
    try:
        actual = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            raw = file.read(length) if 0 < length <= min(actual, LARGEST_HEADER) else b""
        if start == LFS_POINTER:
            raise GrampruneError(f"{path} is not the file itself but its Git LFS pointer; {remedy} (`git lfs pull`).")
        if not actual:
            raise GrampruneError(f"{path} is empty; {remedy}.")
        content = json.loads(raw)
        metadata = content.pop("__metadata__", {})
        entries = {name: _entry(described, 8 + length) for name, described in content.items()}
        if not isinstance(metadata, dict) or any(not _fits(entry) for entry in entries.values()):
            raise ValueError("shapes and places do not fit")
    except OSError as error:
        raise GrampruneError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise GrampruneError(
            f"{path} is not a whole safetensors file (its header cannot be read); {remedy}."
        ) from error
    expected = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != expected:
            raise GrampruneError(
                f"{path} is damaged: the tensor {name!r} begins at byte {entry.start:,}, but what is before it ends at "
                f"{expected:,}; {remedy}."
            )
        expected += entry.size
    if actual != expected:
        raise GrampruneError(
            f"{path} is {actual:,} bytes long where its header says {expected:,}: it is truncated or damaged; {remedy}."
        )
    return Header(entries, metadata, hashlib.sha256(raw).hexdigest())


def _entry(described: dict, base: int) -> Entry:
    """A header's description of a tensor; base: where the data begin in the file."""
    start, end = described["data_offsets"]
    return Entry(str(described["dtype"]), tuple(map(int, described["shape"])), base + start, end - start)


def _fits(entry: Entry) -> bool:
    """Whether a known dtype's shape has the size that the header says."""
    dtype = DTYPES.get(entry.dtype)
    expected = entry.size if dtype is None else prod(entry.shape) * dtype.itemsize
    return min((entry.size, *entry.shape)) >= 0 and entry.size == expected


def read_tensor(
    path: Path,
    entry: Entry,
    rows: slice | None = None,  # of the first dimension, without a step; all by default
) -> Tensor:
    """One tensor, or some of its rows, in memory of its own. Raises GrampruneError if it cannot be read.

    Its address is a multiple of 64 whatever the process did before: the order of a product's sums depends on it.
    """
    shape, start, size = entry.shape, entry.start, entry.size
    if entry.dtype not in DTYPES:
        raise GrampruneError(f"{path} holds a tensor of dtype {entry.dtype}; known are {', '.join(DTYPES)}.")
    if rows is not None:
        first, last, step = rows.indices(shape[0])
        if step != 1 or last < first:
            raise ValueError(f"{rows} are not consecutive rows")
        row = size // max(shape[0], 1)
        shape, start, size = (last - first, *shape[1:]), start + first * row, (last - first) * row
    tensor = torch.empty(shape, dtype=DTYPES[entry.dtype])
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            view = to_bytes(tensor)
            while view:  # one read returns 2 GiB at most
                count = file.readinto(view)
                if not count:
                    raise GrampruneError(f"{path} ended early while being read: it has been changed meanwhile.")
                view = view[count:]
    except OSError as error:
        raise GrampruneError(f"{path} cannot be read: {error.strerror}.") from error
    return tensor


def to_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values in order, as they lie in a file."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class Writer:
    """Fills a safetensors file whose shapes are known beforehand; made by `writing`."""

    def __init__(self, file: BinaryIO, entries: dict[str, Entry], metadata: dict[str, str]):
        self.metadata = metadata
        """Goes into the header when the file is complete; may be changed until then, within `ROOM`."""
        self._file = file
        self._entries = entries
        self._hashes = {name: hashlib.sha256() for name in entries}
        self._left = {name: entry.size for name, entry in entries.items()}
        self._next = {name: entry.start for name, entry in entries.items()}

    def append(self, name: str, rows: Tensor) -> None:
        """The next rows of that tensor, in any order between tensors; dtype as declared."""
        entry = self._entries[name]
        if rows.dtype != DTYPES[entry.dtype] or rows.nbytes > self._left[name]:
            raise ValueError(f"{name}: {rows.dtype} {tuple(rows.shape)} does not fit {entry}")
        self._file.seek(self._next[name])
        values = to_bytes(rows)
        self._file.write(values)
        self._hashes[name].update(values)
        self._next[name] += rows.nbytes
        self._left[name] -= rows.nbytes

    def content(self) -> str:
        """sha256 over the digests of all tensors. Raises ValueError if one of them is not complete."""
        incomplete = [name for name, left in self._left.items() if left]
        if incomplete:
            raise ValueError(f"not enough was written to {incomplete}")
        lines = (f"{name} {self._hashes[name].hexdigest()}\n" for name in sorted(self._hashes))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def writing(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: dict[str, str],
) -> Iterator[Writer]:
    """A `Writer` for a new file of those tensors, which gets its name only when all of them are complete.

    The metadata gets a further key `content`, the digest of all values: the header's digest, which is cheap to
    have, thereby stands for the whole file.
    """
    header: dict[str, dict] = {}
    offset = 0
    # Wide dtypes first, so that every tensor starts at a multiple of its item's size.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    # The header comes first but is known last: room is left for what is learnt while writing.
    length = len(_encoded(header, {**metadata, "content": "0" * 64})) + ROOM * (1 + len(tensors))
    length += -length % 8
    base = 8 + length
    entries = {name: _entry(described, base) for name, described in header.items()}
    with atomic(path) as part, open(part, "wb") as file:
        file.truncate(base + offset)
        writer = Writer(file, entries, dict(metadata))
        yield writer
        raw = _encoded(header, {**writer.metadata, "content": writer.content()})
        if len(raw) > length:
            raise ValueError(f"{path}: the metadata grew by more than the room that was left for it")
        file.seek(0)
        file.write(length.to_bytes(8, "little") + raw.ljust(length))


def _encoded(header: dict[str, dict], metadata: dict[str, str]) -> bytes:
    return json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
