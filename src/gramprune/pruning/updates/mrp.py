"""MRP: the compensation of many weights that are removed at once (Zhao et al., arXiv 2410.15567).

When to use: solution M is the exact optimum for the mask, in the paper's own form (see exact, which is the same and
takes the cheaper of two forms). Solution S compensates every removed weight as if it were the only one (Optimal Brain
Surgeon) and adds the compensations: one product with the inverse, and no guarantee when many weights go.

With H the evenly damped Gram matrix: δw = − w_P ([H⁻¹]_PP)⁻¹ [H⁻¹]_{P,:}, for S with the diagonal of [H⁻¹]_PP alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError, suggest
from gramprune.pruning.gram import Gram
from gramprune.pruning.updates.exact import DAMPING, solve

SOLUTIONS = ("S", "M")


def update(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    solution: str = "M",
    damping: float = DAMPING,
) -> tuple[Tensor, dict]:
    """The compensated weights, zero outside the mask, and the damping that was needed."""
    if solution not in SOLUTIONS:
        raise GrampruneError(f"{gram.name}: mrp has no solution {solution!r}; {suggest(solution, SOLUTIONS)}")
    if damping < 0:
        raise GrampruneError(f"{gram.name}: mrp needs damping of 0 or more; found {damping}.")
    if solution == "M":
        return solve(weight, gram, mask, damping, even=True, always_pruned=True)
    inverse, damping = gram.inverse(damping, even=True)
    dense = weight * gram.norms
    new = torch.addmm(dense, dense.masked_fill(mask, 0).div_(inverse.diagonal()), inverse, alpha=-1)
    return gram.unscaled(new, weight, mask), {"damping": damping}
