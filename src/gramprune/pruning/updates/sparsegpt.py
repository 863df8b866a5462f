"""SparseGPT's sweep for a fixed mask (Frantar and Alistarh, arXiv 2301.00774): columns settled from left to right.

When to use: the usual baseline, one pass over the columns. Weights to the left of a pruned one are settled and do not
make up for it, so ADMM and the exact update end with less error.

Works in scaled coordinates, `Ĝ = G / (n nᵀ)` and `Ŵ = W · n`. With the damping spread evenly over G's diagonal this is
the published sweep: the scaled factor is `Ĉ = C · n`, so `Ŵ / Ĉ_jj = W / C_jj`, and errors and scores are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram

DAMPING, WIDTH = 0.01, 128  # the authors' released code
NARROW = 16  # columns that are settled one by one; those behind them in the block learn of it by one product


def update(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    damping: float = DAMPING,
    width: int = WIDTH,  # columns per block; without effect on the result, but for rounding
) -> tuple[Tensor, dict]:
    """The weights after the sweep, zero outside the mask."""
    new, _, stats = sweep(weight, gram, lambda start, stop, *_: mask[:, start:stop], width, damping, width)
    return new, stats


def sweep(
    weight: Tensor,  # (out, in)
    gram: Gram,
    choose: Callable[[int, int, Tensor, Tensor], Tensor],  # (start, stop, their scaled weights, their C_jj) -> mask
    step: int,  # columns that are chosen at a time
    damping: float,
    width: int,  # columns per block, rounded up to a multiple of `step`
) -> tuple[Tensor, Tensor, dict]:
    """The sweep with the masks (out, stop − start) that `choose` gives: the weights, the mask and the statistics.

    err_j = Ŵ_j / C_jj where pruned, else 0 ;   Ŵ_k −= err_j C_jk for k > j ;   result (Ŵ ∘ M) / n
    """
    if damping < 0 or width < 1:
        raise GrampruneError(
            f"{gram.name}: sparsegpt needs damping of 0 or more and width of 1 or more; found {damping} and {width}."
        )
    factor, damping = gram.inverse_factor(damping, even=True)
    current = weight * gram.norms  # dead inputs: 0, so they are pruned first wherever the mask is chosen here
    mask = torch.empty_like(weight, dtype=torch.bool)
    width = -(-width // step) * step
    # What is chosen together must know of all columns before it: it is a whole block, or lies between two products.
    narrow = NARROW if step == width else -(-NARROW // step) * step
    for start in range(0, weight.shape[1], width):
        here, behind = slice(start, start + width), slice(start + width, None)
        own = factor[here, here]
        diagonal = own.diagonal()
        # Transposed: what a column's step reads and writes then lies together, and a block fits the cache.
        block = current[:, here].T.contiguous()
        kept, errors = torch.empty_like(block, dtype=torch.bool), torch.empty_like(block)
        for first in range(0, len(block), narrow):
            last = min(first + narrow, len(block))
            for j in range(first, last):
                if j % step == 0:
                    some = slice(j, min(j + step, len(block)))
                    kept[some] = choose(start + some.start, start + some.stop, block[some].T, diagonal[some]).T
                torch.div(block[j], diagonal[j], out=errors[j]).masked_fill_(kept[j], 0)
                block[j + 1 : last].addr_(own[j, j + 1 : last], errors[j], alpha=-1)
            block[last:].addmm_(own[first:last, last:].T, errors[first:last], alpha=-1)
        current[:, here], mask[:, here] = block.T, kept.T
        current[:, behind].addmm_(errors.T, factor[here, behind], alpha=-1)
    return gram.unscaled(current, weight, mask), mask, {"damping": damping}
