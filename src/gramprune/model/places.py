"""The place of a linear's weight in the files of a checkpoint: runs of rows of one or several stored tensors.

Nearly every weight is one whole tensor. Some checkpoints have several in one, interleaved or one after the other. Of
a tensor with three dimensions, such as fused experts, the rows of all its matrices count one after the other; a
vector is a matrix of one row.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from gramprune.model.weights import Weights
from gramprune.storage.tensorfile import to_bytes

Place = list[list[Any]]
"""[key, first row, row after the last, step] in the order of the parameter's rows; plain, for artifacts to hold."""


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows a stored tensor has."""
    return prod(shape[:-1])


def runs(keys: list[str], order: Tensor, shape: Callable[[str], tuple[int, ...]]) -> Place:
    """The place of a matrix whose rows are stored in that order.

    order: (rows,) int64, numbers of the rows of all tensors, those of the first one first.
    """
    ends = torch.tensor([rows_of(shape(key)) for key in keys]).cumsum(0)
    owners = torch.searchsorted(ends, order.contiguous(), right=True).tolist()
    begins = [0, *ends.tolist()]
    found: Place = []
    for owner, number in zip(owners, order.tolist(), strict=True):
        key, row = keys[owner], number - begins[owner]
        last = found[-1] if found else None
        if last and last[0] == key and last[3] == 0 and row > last[1]:
            last[2], last[3] = row + 1, row - last[1]  # the second row of a run says its step
        elif last and last[0] == key and last[3] > 0 and row == last[2] - 1 + last[3]:
            last[2] = row + 1
        else:
            found.append([key, row, row + 1, 0])
    return [[key, start, stop, step or 1] for key, start, stop, step in found]


def read(place: Place, weights: Weights) -> Tensor:
    """The matrix at a place, in the stored dtype and orientation."""
    if len(place) == 1:
        key, start, stop, step = place[0]
        return _rows(weights, key, start, stop)[::step]
    rows = sum(len(range(start, stop, step)) for _, start, stop, step in place)
    matrix = torch.empty(rows, weights.shape(place[0][0])[-1], dtype=dtype(place, weights))
    fill(matrix, place, weights)
    return matrix


def fill(matrix: Tensor, place: Place, weights: Weights) -> None:
    """Put what is at a place into a matrix (rows, columns) of the stored dtype, one stored tensor at a time."""
    row = 0
    for key, start, stop, step in place:
        rows = _rows(weights, key, start, stop)[::step]
        matrix[row : row + len(rows)] = rows
        row += len(rows)


def _rows(weights: Weights, key: str, start: int, stop: int) -> Tensor:
    """Consecutive rows of a stored tensor."""
    if len(weights.shape(key)) == 1:
        return weights.read(key)[None]
    per = rows_of(weights.shape(key)[1:])  # 1 of a matrix
    first = start // per
    return weights.read(key, slice(first, -(-stop // per))).flatten(0, -2)[start - first * per : stop - first * per]


def dtype(place: Place, weights: Weights) -> torch.dtype:
    """The dtype that the matrix at a place is stored in."""
    return weights.dtype(place[0][0])


def pieces(place: Place, matrix: Tensor, weights: Weights) -> list[tuple[str, int, memoryview]]:
    """What is to be written for a matrix (stored orientation and dtype): name of the file, place in bytes, bytes."""
    found, row = [], 0
    for key, start, stop, step in place:
        path, entry = weights.place(key)
        length = entry.size // rows_of(entry.shape)
        count = len(range(start, stop, step))
        rows = matrix[row : row + count]
        for part, number in [(rows, start)] if step == 1 else zip(rows.split(1), range(start, stop, step), strict=True):
            found.append((path.name, entry.start + number * length, to_bytes(part)))
        row += count
    return found
