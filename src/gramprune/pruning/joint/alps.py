"""ALPS (Meng et al., arXiv 2406.07831): ADMM whose ρ grows until the mask stands still, then conjugate gradients.

When to use: for low errors at high sparsities, where time allows: tens to hundreds of steps, and one factorisation for
every third of them (n³ by Cholesky; an eigendecomposition, once 9n³, would still need 2n³ for each ρ).

Follows the paper. The released code also divides ρ by 5 and starts again where the mask hardly changes at first, and
stops early where it changes by less than 0.03 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern
from gramprune.pruning.updates.pcg import TOLERANCE, conjugate_gradients

DAMPING, RHO, ITERATIONS, PCG = 0.01, 0.1, 300, 10  # the paper's and the authors' released code
EVERY = 3  # iterations with one ρ
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # changes of the mask as a share of the kept weights, factor of ρ


def prune(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    iterations: int = ITERATIONS,  # at most
    damping: float = DAMPING,
    rho: float = RHO,
    pcg: int = PCG,  # iterations of the final conjugate gradients
) -> tuple[Tensor, Tensor, dict]:
    """Mask, weights and statistics. In scaled coordinates, D being the pruned and B the free weights:

    B = (Ĥ + ρI)⁻¹ (ĤŴ − V + ρD) ;   D = (B + V/ρ) ∘ M, M where it is largest ;   V += ρ (B − D)
    """
    if iterations < 1 or damping < 0 or rho <= 0 or pcg < 1:
        raise GrampruneError(
            f"{gram.name}: alps needs iterations of 1 or more, damping of 0 or more, rho above 0 and pcg of 1 or more; "
            f"found {iterations}, {damping}, {rho} and {pcg}."
        )
    inverse, used = gram.inverse(damping, shift=rho, even=True, keep=False)
    dense = weight * gram.norms  # dead inputs: 0, so they are pruned first
    before = pattern.mask(dense.abs())
    kept = int(before.sum())
    # In place, as these are a job's largest tensors; `dual` is V/ρ and `difference` D − V/ρ.
    difference, dual = dense.where(before, 0), torch.zeros_like(dense)
    for step in range(1, iterations + 1):
        # B = Ŵ + (ρ(D − Ŵ) − V)(Ĥ + ρI)⁻¹: one product, without Ĥ.
        proposal = dual.add_(dense).addmm_(difference.sub_(dense), inverse, alpha=rho)
        mask = pattern.mask(torch.abs(proposal, out=difference))
        torch.mul(proposal, mask, out=difference)
        dual = proposal.sub_(difference)  # zero where kept
        if step % EVERY == 0:
            changes = int((mask != before).sum())
            if not changes:
                break
            growth = next(factor for share, factor in GROWTH if changes >= share * kept)
            rho, before = rho * growth, mask
            del inverse  # before the next one is made
            inverse, used = gram.inverse(damping, shift=rho, even=True, keep=False)
            dual.div_(growth)
        difference.sub_(dual)
    del inverse, difference, dual, proposal
    system = gram.damped(used, even=True)[0]
    new, steps = conjugate_gradients(dense, system, mask, dense * mask, pcg, TOLERANCE)
    stats = {"iterations": step, "damping": used, "rho": rho, "pcg": steps}
    return mask, gram.unscaled(new, weight, mask), stats
