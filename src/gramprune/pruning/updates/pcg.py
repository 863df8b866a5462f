"""Conjugate gradients for a fixed mask (as in ALPS, arXiv 2406.07831): the masked least squares, by iterations.

When to use: close to exact's optimum for one (out, in)·(in, in) product per iteration, all rows at once; no row needs a
system of its own. Preconditioned by the diagonal, which the scaled coordinates have made all but constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram
from gramprune.pruning.updates.exact import DAMPING

ITERATIONS, TOLERANCE = 50, 1e-4


def update(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    iterations: int = ITERATIONS,
    damping: float = DAMPING,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, dict]:
    """The weights after at most `iterations` steps, zero outside the mask."""
    if iterations < 1 or damping < 0 or tolerance < 0:
        raise GrampruneError(
            f"{gram.name}: pcg needs iterations of 1 or more, damping of 0 or more and tolerance of 0 or more; found "
            f"{iterations}, {damping} and {tolerance}."
        )
    system, damping = gram.damped(damping)
    dense = weight * gram.norms
    new, steps = conjugate_gradients(dense, system, mask, dense * mask, iterations, tolerance)
    return gram.unscaled(new, weight, mask), {"iterations": steps, "damping": damping}


def conjugate_gradients(
    dense: Tensor,  # (out, in) Ŵ
    system: Tensor,  # (in, in) Ĥ
    mask: Tensor,  # (out, in) bool
    start: Tensor,  # (out, in), zero outside the mask, changed in place
    iterations: int,
    tolerance: float,  # of a row's residual, relative to its right-hand side (ŴĤ) ∘ M
) -> tuple[Tensor, int]:
    """min over V of tr (Ŵ − V) Ĥ (Ŵ − V)ᵀ from `start` on, and how many steps were made.

    Each row has its own step sizes; a row that has converged stands still. Stops when all have.
    """
    weights, diagonal = start, system.diagonal()
    # A smaller residual is rounding, and steps along it would lead anywhere.
    tolerance = max(tolerance, torch.finfo(system.dtype).eps)
    residual = ((dense - weights) @ system).mul_(mask)
    enough = ((dense @ system).mul_(mask).norm(dim=1) * tolerance)[:, None]
    direction = residual / diagonal
    old = (residual * direction).sum(dim=1, keepdim=True)
    for step in range(iterations):
        going = residual.norm(dim=1, keepdim=True) > enough
        if not going.any():
            return weights, step
        image = (direction @ system).mul_(mask)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        length = (old / curvature).where(going & (curvature > 0), 0)
        weights.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        image = residual / diagonal
        new = (residual * image).sum(dim=1, keepdim=True)
        direction = direction.mul_((new / old).where(old > 0, 0)).add_(image)
        old = new
    return weights, iterations
