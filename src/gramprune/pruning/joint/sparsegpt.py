"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): the mask is chosen block by block while the sweep updates.

When to use: the usual baseline, one pass over the columns. What is already pruned decides what is pruned next, but
every block of columns loses the same share, whatever it is worth.

A block's count is rounded cumulatively, so that a row or the matrix has its exact number of zeros whatever the width.
"""

from __future__ import annotations

from torch import Tensor

from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern
from gramprune.pruning.updates.sparsegpt import DAMPING, WIDTH, sweep


def prune(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    damping: float = DAMPING,
    width: int = WIDTH,  # columns per block; for N:M rounded up to whole groups, and without effect on the result
) -> tuple[Tensor, Tensor, dict]:
    """Mask, weights and statistics; score Ŵ_ij² / C_jj² with weights updated for all that is pruned before.

    A fraction is chosen per block, of each of its rows or of all of it; N:M when the sweep reaches a group.
    """

    def choose(start: int, stop: int, current: Tensor, diagonal: Tensor) -> Tensor:
        scores = (current / diagonal).square_()
        if pattern.group:
            return pattern.mask(scores)
        candidates = pattern.rows_of_choice(scores).shape[1]
        height = candidates // (stop - start)  # rows that share a choice
        count = pattern.pruned_per_choice(height * stop) - pattern.pruned_per_choice(height * start)
        return pattern.mask(scores, count / candidates)

    new, mask, stats = sweep(weight, gram, choose, pattern.group or width, damping, width)
    return mask, new, stats
