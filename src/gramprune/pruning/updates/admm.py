"""ADMM for a fixed mask (Boža, arXiv 2401.02938): minimise ‖XWᵀ − XVᵀ‖² over V that is zero outside the mask.

When to use: nearly the exact masked least squares for one factorisation per Gram matrix, shared by all rows and all
linears that have it, and one (out, in)·(in, in) product per iteration.

Works in scaled coordinates, `Ĝ = G / (n nᵀ)` and `Ŵ = W · n`, so that ρ = 1 and the damping fit every layer. The
damped Ĝ also forms the right-hand side: the damping pulls towards the dense weights, not towards zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram

DAMPING, RHO, ITERATIONS = 0.1, 1.0, 20  # the authors' released code


def update(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    iterations: int = ITERATIONS,
    damping: float = DAMPING,
    rho: float = RHO,
) -> tuple[Tensor, dict]:
    """The weights after `iterations` steps, zero outside the mask."""
    new, _, stats = iterate(weight, gram, lambda step, proposal: mask, iterations, damping, rho)
    return new, stats


def iterate(
    weight: Tensor,  # (out, in)
    gram: Gram,
    choose: Callable[[int, Tensor], Tensor],  # (step from 0, V + U in scaled coordinates) -> mask
    iterations: int,
    damping: float,
    rho: float,
) -> tuple[Tensor, Tensor, dict]:
    """ADMM with the mask that `choose` gives at every step: the weights, the last mask and the statistics.

    Z = (V + U) ∘ M ;   U += V − Z ;   V = (Ĝ + ρI)⁻¹ (ĜŴ + ρ(Z − U)) ;   result ((V + U) ∘ M) / n
    """
    if iterations < 1 or damping < 0 or rho <= 0:
        raise GrampruneError(
            f"{gram.name}: admm needs iterations of 1 or more, damping of 0 or more and rho above 0; found "
            f"{iterations}, {damping} and {rho}."
        )
    inverse, damping = gram.inverse(damping, shift=rho)
    dense = weight * gram.norms  # dead inputs: 0, so they are pruned first wherever the mask is chosen here
    # V = Ŵ + ρ (Z − U − Ŵ)(Ĝ + ρI)⁻¹: the same damped Ĝ on both sides, so one product without it.
    # In place, as these are a job's largest tensors. Z is the proposal V + U where kept, and the new U is the proposal
    # where pruned. Products with zeros and ones: selecting by a mask takes a CPU fifteen times longer.
    proposal, other, last = dense.clone(), torch.empty_like(dense), None
    for step in range(iterations):
        mask = choose(step, proposal)
        if mask is not last:
            last, pruned = mask, (~mask).to(dense.dtype)
        torch.addcmul(dense, proposal, pruned, out=other)  # U + Ŵ
        proposal.add_(dense).sub_(other, alpha=2)  # Z − U − Ŵ
        proposal, other = other.addmm_(proposal, inverse, alpha=rho), proposal
    del dense, other, pruned
    return gram.unscaled(proposal, weight, mask), mask, {"iterations": iterations, "damping": damping}
