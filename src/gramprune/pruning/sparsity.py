"""Sparsity patterns: how many weights are pruned, counted exactly, and where they may be.

Three kinds: a fraction of every output row, a fraction of the whole matrix, or N:M (at most N non-zeros in every
M neighbours along the input). A pattern turns scores into a mask with *exactly* the requested number of zeros:
thresholding with `<=` prunes ties too and overshoots in half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from gramprune.errors import GrampruneError
from gramprune.pruning.arguments import described, tensor

if TYPE_CHECKING:
    from torch import Tensor

GRANULARITIES = ("row", "matrix")
FEW, MANY = 16, 2048  # candidates of which each one's rank is counted, in at least so many rows


@dataclass(frozen=True)
class Pattern:
    """Which weights may be zero. Made by `Pattern.parse`.

    sparsity: fraction of zeros, in (0, 1).
    granularity: "row" | "matrix" for a plain fraction; "group" for N:M.
    keep, group: N and M of N:M, otherwise 0.
    Raises GrampruneError if these do not fit each other.

    >>> gp.Pattern.parse("2:4")
    Pattern(sparsity=0.5, granularity='group', keep=2, group=4)

    The count is exact, also where scores are equal:

    >>> gp.Pattern.parse(0.5).mask(torch.ones(1, 4))
    tensor([[False, False,  True,  True]])
    """

    sparsity: float
    granularity: str
    keep: int = 0
    group: int = 0

    def __post_init__(self) -> None:
        if self.granularity == "group":
            right = type(self.keep) is type(self.group) is int and 0 < self.keep < self.group
            right = right and self.sparsity == 1 - self.keep / self.group
        else:
            right = self.granularity in GRANULARITIES and isinstance(self.sparsity, float) and 0 < self.sparsity < 1
            right = right and self.keep == self.group == 0
        if not right:
            fields = ", ".join(map(described, vars(self).values()))
            raise GrampruneError(f"Pattern({fields}) is none; make it with Pattern.parse, from 0.5 or '2:4'.")

    @classmethod
    def parse(cls, value: float | str, granularity: str = "row") -> Pattern:
        """`0.5` (with a granularity) or `"2:4"` as a pattern.

        Raises GrampruneError if the value is neither, or not strictly between dense and empty.

        >>> gp.Pattern.parse("0.7", granularity="matrix").slug
        '0.7_matrix'
        """
        if isinstance(value, str) and ":" in value:
            keep, _, group = value.partition(":")
            if not (keep.isdecimal() and group.isdecimal() and 0 < int(keep) < int(group)):
                raise GrampruneError(f"sparsity {value!r} is not N:M with 0 < N < M, such as '2:4'.")
            if granularity not in ("row", "group"):  # "row" is what one has who says nothing
                raise GrampruneError(
                    f"granularity {described(granularity)} says where a fraction is counted, but sparsity {value!r} is "
                    "counted in groups; leave granularity out, or give a fraction."
                )
            return cls(1 - int(keep) / int(group), "group", int(keep), int(group))
        try:
            sparsity = float(value) if isinstance(value, str | Real) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            sparsity = math.nan
        if not 0 < sparsity < 1:
            raise GrampruneError(
                f"sparsity {described(value)} is not a fraction of zeros strictly between 0 and 1, nor N:M such as "
                "'2:4'."
            )
        if granularity not in GRANULARITIES:
            raise GrampruneError(f"granularity {described(granularity)} is not one of {', '.join(GRANULARITIES)}.")
        return cls(sparsity, granularity)

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.group else f"{self.sparsity:g}"

    @property
    def slug(self) -> str:
        """The pattern as a part of a file name: `2of4`, `0.5_row`."""
        return f"{self.keep}of{self.group}" if self.group else f"{self.sparsity!r}_{self.granularity}"

    def check(self, columns: int, name: str, rows: int | None = None) -> None:
        """Raises GrampruneError if a matrix of that size cannot have this pattern, or would lose nothing or all.

        rows: output rows, which count where granularity is "matrix"; without them that is not looked at.
        """
        self._check_groups(columns, name)
        weights = {"row": columns, "matrix": columns * (rows or 0)}.get(self.granularity, 0)
        pruned = self.pruned_per_choice(weights)
        if weights and not 0 < pruned < weights:
            lost, where = "all" if pruned else "none", "a row" if self.granularity == "row" else "the matrix"
            others = f"choose between {1 / weights:.6g} and {1 - 1 / weights:.12g}, or " if weights > 1 else ""
            raise GrampruneError(
                f"{name}: sparsity {self.sparsity!r} prunes {lost} of the {weights:,} weights of {where}; {others}"
                "exclude this linear."
            )

    def _check_groups(self, columns: int, name: str) -> None:
        """Raises GrampruneError if that many input columns are not whole groups."""
        if self.group and columns % self.group:
            raise GrampruneError(
                f"{name} has {columns} input columns, which the pattern {self} does not divide: "
                f"choose a group that divides {columns}, or exclude this linear."
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
        Raises GrampruneError for scores of another shape or type, and for NaN, which has no order.
        """
        scores = tensor(scores, "scores", ("out", "in"))
        self._check_groups(scores.shape[1], "scores")
        if scores.max().isnan():
            raise GrampruneError("the mask's scores hold NaN: the weights or the Gram matrix are broken.")
        rows = self.rows_of_choice(scores)
        pruned = smallest(rows, self.pruned_per_choice(rows.shape[1], sparsity))
        return ~pruned.reshape(scores.shape)

    def check_mask(self, mask: Tensor, name: str) -> None:
        """Raises GrampruneError unless every row, group or matrix of `mask` has exactly its number of zeros."""
        import torch

        mask = tensor(mask, f"{name}: mask", ("out", "in"), (torch.bool,))
        self._check_groups(mask.shape[1], name)
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

    A selection and a count of ties instead of a sort: linear time, and the same on every device. In many rows of few,
    as the groups of N:M are, each one's rank is counted, in half the time or less.
    """
    import torch

    from gramprune.pruning.numerics import rows_per_piece

    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if count <= 0:
        return chosen
    choose = _ranked if scores.shape[1] <= FEW and len(scores) >= MANY else _selected
    piece = rows_per_piece(scores)
    for part, result in zip(scores.split(piece), chosen.split(piece), strict=True):
        choose(part, count, result)
    return chosen


def _ranked(scores: Tensor, count: int, chosen: Tensor) -> None:
    """Fill what is `smallest`, by how many of its row go before each."""
    import torch

    columns = scores.T.contiguous()
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=scores.device)
    for place in range(1, len(columns)):
        before = columns[:place] <= columns[place]  # (place, rows): the earlier ones that go before this one
        ranks[place] += before.view(torch.uint8).sum(dim=0, dtype=torch.uint8)
        ranks[:place] += ~before
    torch.lt(ranks.T, count, out=chosen)


def _selected(scores: Tensor, count: int, chosen: Tensor) -> None:
    """Fill what is `smallest`, by the last score that is chosen."""
    import torch

    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    torch.lt(scores, threshold, out=chosen)
    tied = scores == threshold
    room = count - chosen.sum(dim=1, keepdim=True)
    chosen |= tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room)
