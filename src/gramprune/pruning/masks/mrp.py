"""MRP, many weights removed at once (Zhao et al., arXiv 2410.15567): the mask with the smallest loss after an update.

When to use: for a mask that an update follows, which is what its scores assume; with N:M, solution M sees how the
weights of a group make up for each other. Solution S scores every weight alone, the classic OBS.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from gramprune.errors import GrampruneError, suggest
from gramprune.pruning.gram import Gram
from gramprune.pruning.numerics import rows_per_piece
from gramprune.pruning.sparsity import Pattern

SOLUTIONS = ("auto", "S", "M")
DAMPING = 0.01
LIMIT = 256  # patterns of a group that solution M tries: 4:8 has 70


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    solution: str = "auto",  # "S": weights one by one; "M": all patterns of every group; "auto": M for N:M, else S
    damping: float = DAMPING,
) -> Tensor:
    """(out, in) bool, True = kept: score w_p² / [H⁻¹]_pp, or the N:M pattern with the smallest loss."""
    if solution not in SOLUTIONS:
        raise GrampruneError(f"{gram.name}: there is no solution {solution!r} of mrp; {suggest(solution, SOLUTIONS)}")
    if damping < 0:
        raise GrampruneError(f"{gram.name}: mrp needs damping of 0 or more; found {damping}.")
    if solution == "M" and not pattern.group:
        raise GrampruneError(
            f"{gram.name}: mrp's solution M tries all patterns of a group, and {pattern} has no groups: set "
            "`solution: S`, or a sparsity such as '2:4'."
        )
    groupwise = pattern.group and solution != "S"
    count = comb(pattern.group, pattern.keep) if groupwise else 0
    if count > LIMIT:
        raise GrampruneError(
            f"{gram.name}: {pattern} has {count} patterns per group and mrp's solution M tries at most {LIMIT}: set "
            "`solution: S`, or a smaller group."
        )
    inverse, _ = gram.inverse(damping, even=True)
    scaled = weight * gram.norms  # dead inputs: 0, so they cost nothing and go first
    if groupwise:
        return _enumerate(scaled, inverse, pattern, gram.name)
    return pattern.mask(scaled.square_().div_(inverse.diagonal()))


def _enumerate(
    weight: Tensor,  # (out, in) scaled
    inverse: Tensor,  # (in, in) of the damped Gram matrix
    pattern: Pattern,  # N:M
    name: str,
) -> Tensor:
    """(out, in) bool: per row and group the pattern with the smallest `½ w_P ([H⁻¹]_PP)⁻¹ w_Pᵀ`, the first of equals.

    With [H⁻¹]_PP = LLᵀ that is ½ ‖L⁻¹ w_P‖². L is the same for all rows: one small factor per group and pattern.
    """
    size = pattern.group
    pruned = torch.tensor(list(combinations(range(size), size - pattern.keep)), device=weight.device)
    kept = torch.ones(len(pruned), size, dtype=torch.bool, device=weight.device).scatter_(1, pruned, False)
    groups = weight.T.reshape(-1, size, len(weight))
    own = inverse.reshape(len(groups), size, len(groups), size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    identity = torch.eye(pruned.shape[1], dtype=weight.dtype, device=weight.device)
    choices = torch.zeros(len(groups), len(weight), dtype=torch.int64, device=weight.device)
    piece = rows_per_piece(groups.flatten(1))
    for some, blocks, choice in zip(groups.split(piece), own.split(piece), choices.split(piece), strict=True):
        factors, info = torch.linalg.cholesky_ex(blocks[:, pruned[:, :, None], pruned[:, None, :]])
        if info.any():
            raise GrampruneError(f"{name}: mrp cannot tell a group's inputs apart; raise its damping.")
        roots = torch.linalg.solve_triangular(factors, identity, upper=False)  # (groups, patterns, |P|, |P|)
        best = torch.full_like(choice, torch.inf, dtype=weight.dtype)
        for index, columns in enumerate(pruned):
            loss = (roots[:, index] @ some[:, columns]).square_().sum(dim=1)
            choice.masked_fill_(loss < best, index)
            torch.minimum(best, loss, out=best)
    return kept[choices.T].reshape(weight.shape)
