"""Allocation: which blocks get more zeros and which fewer, where the share of zeros over all weights is given.

Every method has two functions, as a model's weights are not in memory at once: `look(linears) -> kept`, what it keeps
of a block, and `tilts(kept of all blocks, alpha) -> (blocks,)`, how much each block's fractions are above the wanted
ones. What leads out of (0, 1) is clamped, and all others move by the same, so that the share over all weights stays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning import arguments, methods
from gramprune.pruning.gram import Gram
from gramprune.pruning.rooms import Room, balanced, counted, mean, wanted
from gramprune.pruning.sparsity import Pattern

ALPHAS = {0.5: 0.04, 0.6: 0.1, 0.7: 0.15}  # arXiv 2505.23807, by the mean fraction; between them straight lines


class Linear(NamedTuple):
    """A linear that gets a share of the zeros."""

    block: int
    name: str
    weight: Tensor  # (out, in) dense
    gram: Tensor | Gram  # (in, in) of what enters it in the dense model
    pattern: Pattern  # the fraction that it would have without an allocation


def allocate(
    linears: Iterable[Linear],  # block by block; looked at once, one after the other
    method: str,
    alpha: float | None = None,  # half the range of the blocks' fractions; by default as `ALPHAS` have it
) -> dict[tuple[int, str], float]:
    """By block and name, the fractions of zeros: a whole number in every row, or in the matrix, as the pattern counts.

    Over all weights they are as many zeros as without an allocation; rounding leaves at most what the last linear has.
    Raises GrampruneError for an unknown method, and arguments that are not what they should be.
    """
    package = sys.modules[__name__]
    look, tilts = (methods.load(package, method, name) for name in ("look", "tilts"))
    if alpha is not None and arguments.typed(alpha, f"{method}: alpha", float) <= 0:
        raise GrampruneError(f"{method}: alpha is {alpha}; expected more than 0.")
    rooms: dict[tuple[int, str], Room] = {}

    def prepared(members: Iterable[Linear]) -> Iterator[Linear]:
        for linear in members:
            weight, gram = methods.prepare(linear.weight, linear.gram)
            methods.check_pattern(linear.pattern, weight, gram)
            if linear.pattern.group:
                raise GrampruneError(f"{gram.name}: {linear.pattern} cannot be allocated; give a fraction.")
            rooms[linear.block, linear.name] = Room.of(weight.shape, linear.pattern)
            yield linear._replace(weight=weight, gram=gram)

    kept = {block: look(prepared(members)) for block, members in groupby(linears, key=lambda linear: linear.block)}
    found = list(rooms.values())
    if not found:
        return {}
    if alpha is None:
        alpha = float(np.interp(mean(wanted(found), found), list(ALPHAS), list(ALPHAS.values())))
    tilt = dict(zip(kept, tilts(list(kept.values()), alpha).tolist(), strict=True))
    shares = wanted(found) + torch.tensor([tilt[block] for block, _ in rooms], dtype=torch.float64)
    return dict(zip(rooms, counted(balanced(shares, found), found), strict=True))


def names() -> list[str]:
    """Every method, sorted."""
    return methods.names(sys.modules[__name__])
