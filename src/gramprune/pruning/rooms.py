"""What an allocation may do with each linear, and how its wishes become whole numbers with the mean that is wanted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gramprune.pruning.sparsity import Pattern


class Room(NamedTuple):
    """A linear that gets a share of the zeros: how many weights it has, and how many of them become zero together."""

    weights: int
    step: int  # one in every row, or one in the matrix
    wanted: float  # the fraction of zeros that it would have without an allocation

    @classmethod
    def of(cls, shape: tuple[int, ...], pattern: Pattern) -> Room:
        """The room of a matrix (out, in) with a fraction of zeros."""
        rows, columns = shape
        return cls(rows * columns, rows if pattern.granularity == "row" else 1, pattern.sparsity)

    @property
    def steps(self) -> int:
        """How often `step` weights can become zero."""
        return self.weights // self.step


def mean(shares: Tensor, rooms: list[Room]) -> float:
    """The share of zeros over all weights. shares: (linears,) float64."""
    weights = torch.tensor([room.weights for room in rooms], dtype=torch.float64)
    return float(shares @ weights / weights.sum())


def wanted(rooms: list[Room]) -> Tensor:
    """(linears,) float64: the fractions without an allocation."""
    return torch.tensor([room.wanted for room in rooms], dtype=torch.float64)


def balanced(shares: Tensor, rooms: list[Room]) -> Tensor:
    """(linears,) float64: the shares, all moved by the same and then clamped, so that their mean is the wanted one."""
    there, ends = wanted(rooms), torch.tensor([1 / room.steps for room in rooms], dtype=torch.float64)
    low, high = torch.minimum(there, ends), torch.maximum(there, 1 - ends)  # every row, or matrix, a zero and a weight
    target, least, most = mean(there, rooms), -float(shares.max()), 1 - float(shares.min())
    for _ in range(100):  # until float64 has no number between the two
        middle = (least + most) / 2
        found = mean((shares + middle).clamp(low, high), rooms)
        least, most = (middle, most) if found < target else (least, middle)
    return (shares + most).clamp(low, high)


def counted(shares: Tensor, rooms: list[Room]) -> list[float]:
    """The shares as fractions that the linears can have exactly; what one is rounded by, the next one makes up for."""
    found, owed = [], 0.0
    for share, room in zip(shares.tolist(), rooms, strict=True):
        zeros = share * room.weights + owed
        count = min(max(round(zeros / room.step), 1), room.steps - 1)
        owed = zeros - count * room.step
        found.append(count / room.steps)
    return found
