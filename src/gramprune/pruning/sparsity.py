"""Sparsity patterns: how many weights are pruned, counted exactly, and where they may be.

Three kinds: a fraction of every output row, a fraction of the whole matrix, or N:M (at most N non-zeros in every
M neighbours along the input). A pattern turns scores into a mask with *exactly* the requested number of zeros:
thresholding with `<=` prunes ties too and overshoots in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gramprune.errors import GrampruneError, shorter

if TYPE_CHECKING:
    from torch import Tensor

GRANULARITIES = ("row", "matrix")


@dataclass(frozen=True)
class Pattern:
    """Which weights may be zero. Made by `Pattern.parse`.

    sparsity: fraction of zeros, in (0, 1).
    granularity: "row" | "matrix" for a plain fraction; "group" for N:M.
    keep, group: N and M of N:M, otherwise 0.
    """

    sparsity: float
    granularity: str
    keep: int = 0
    group: int = 0

    @classmethod
    def parse(cls, value: float | str, granularity: str = "row") -> Pattern:
        """`0.5` (with a granularity) or `"2:4"` as a pattern.

        Raises GrampruneError if the value is neither, or not strictly between dense and empty.
        """
        if isinstance(value, str) and ":" in value:
            keep, _, group = value.partition(":")
            if not (keep.isdecimal() and group.isdecimal() and 0 < int(keep) < int(group)):
                raise GrampruneError(f"sparsity {value!r} is not N:M with 0 < N < M, such as '2:4'.")
            return cls(1 - int(keep) / int(group), "group", int(keep), int(group))
        try:
            sparsity = float(value)
        except (TypeError, ValueError, OverflowError):
            sparsity = float("nan")
        if not 0 < sparsity < 1 or isinstance(value, bool):
            raise GrampruneError(
                f"sparsity {shorter(value)} is not a fraction of zeros strictly between 0 and 1, nor N:M such as '2:4'."
            )
        if granularity not in GRANULARITIES:
            raise GrampruneError(f"granularity {granularity!r} is not one of {', '.join(GRANULARITIES)}.")
        return cls(sparsity, granularity)

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.group else f"{self.sparsity:g}"

    @property
    def slug(self) -> str:
        """The pattern as a part of a file name: `2of4`, `0.5_row`."""
        return f"{self.keep}of{self.group}" if self.group else f"{self.sparsity!r}_{self.granularity}"

    def check(self, columns: int, name: str, rows: int | None = None) -> None:
        """Raises GrampruneError if a matrix with that many input columns cannot have this pattern.

        rows: with these, also if nothing or everything would be pruned where the weights are counted.
        """
        if self.group and columns % self.group:
            raise GrampruneError(
                f"{name} has {columns} input columns, which the pattern {self} does not divide: "
                f"choose a group that divides {columns}, or exclude this linear."
            )
        if rows is not None and not self.group:
            candidates, where = (columns, "a row") if self.granularity == "row" else (rows * columns, "the matrix")
            pruned = self.pruned_per_choice(candidates)
            if pruned in (0, candidates):
                raise GrampruneError(
                    f"{name}: sparsity {self} prunes {'all' if pruned else 'none'} of the {candidates:,} weights of "
                    f"{where}; choose another sparsity, or exclude this linear."
                )

    def rows_of_choice(self, scores: Tensor) -> Tensor:
        """`scores` (out, in) as (choices, candidates): each row is pruned on its own."""
        if self.granularity == "matrix":
            return scores.reshape(1, -1)
        return scores.reshape(-1, self.group) if self.group else scores

    def pruned_per_choice(self, candidates: int, sparsity: float | None = None) -> int:
        """How many of that many candidates are pruned: the nearest whole number."""
        return round((self.sparsity if sparsity is None else sparsity) * candidates)

    def mask(self, scores: Tensor, sparsity: float | None = None) -> Tensor:
        """Prune the smallest scores; among equal ones, those that come first.

        scores: (out, in), any float dtype. sparsity: instead of the pattern's own (for ramps; not for N:M).
        Returns (out, in) bool, True = kept.
        Raises GrampruneError for NaN scores, which have no order.
        """
        if scores.max().isnan():
            raise GrampruneError("the mask's scores hold NaN: the weights or the Gram matrix are broken.")
        rows = self.rows_of_choice(scores)
        pruned = smallest(rows, self.pruned_per_choice(rows.shape[1], sparsity))
        return ~pruned.reshape(scores.shape)

    def check_mask(self, mask: Tensor, name: str) -> None:
        """Raises GrampruneError unless every row, group or matrix of `mask` has exactly its number of zeros."""
        rows = self.rows_of_choice(mask)
        expected = self.pruned_per_choice(rows.shape[1])
        counts = (~rows).sum(dim=1)
        if (counts != expected).any():
            worst = int((counts - expected).abs().argmax())
            place = {"row": "row", "matrix": "matrix", "group": "group"}[self.granularity]
            raise GrampruneError(
                f"{name}: {place} {worst} has {int(counts[worst])} pruned weights, the pattern {self} asks for "
                f"{expected}: the mask does not belong to this run."
            )


def smallest(
    scores: Tensor,  # (rows, n)
    count: int,
) -> Tensor:
    """(rows, n) bool: exactly `count` True per row, at the smallest scores; ties go to the lowest index.

    A selection and a count of ties instead of a sort: linear time, and the same on every device.
    """
    import torch

    from gramprune.pruning.numerics import rows_per_piece

    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if count <= 0:
        return chosen
    piece = rows_per_piece(scores)
    for part, result in zip(scores.split(piece), chosen.split(piece), strict=True):
        threshold = part.kthvalue(count, dim=1, keepdim=True).values
        torch.lt(part, threshold, out=result)
        tied = part == threshold
        room = count - result.sum(dim=1, keepdim=True)
        result |= tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room)
    return chosen
