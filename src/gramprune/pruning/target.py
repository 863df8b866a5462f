"""Retargeted weights: what a linear should be, so that on the pruned model's inputs it gives the dense model's outputs.

With the inputs X_p of the pruned and X_d of the dense model and `C = X_pᵀX_d`, pruning against ‖X_d Wᵀ − X_p Vᵀ‖² is,
up to a constant, pruning the weights `W̃ᵀ = (G + λI)⁻¹ (C + λI) Wᵀ` against their own Gram matrix `G = X_pᵀX_p`. So
masks, refinements and updates work on (W̃, G) as on (W, G), and make up for what the blocks before have lost.
λ pulls towards the dense weights: without it the calibration text is learnt by heart. Both inputs in one problem are
GPTAQ's idea (arXiv 2504.02692), for quantisation.
"""

from __future__ import annotations

from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning import arguments, methods
from gramprune.pruning.gram import Gram

PULL = 0.5  # 0.3 to 1 were the best on small models


def retarget_weight(
    weight: Tensor,  # (out, in) dense
    gram: Tensor | Gram,  # (in, in), G
    cross: Tensor,  # (in, in), C
    pull: float = PULL,  # λ in units of G's mean diagonal, over inputs that are not dead
) -> Tensor:
    """W̃ (out, in) in the Gram matrix's dtype; the dense weight where C = G, and at dead inputs.

    Raises GrampruneError for arguments that are not what they should be, or a pull that is not above 0.

    The blocks before have halved an input, which was 1: the weight of 1 is to be 2, and is pulled towards 1.

    >>> weight, gram, cross = torch.tensor([[1.0]]), torch.tensor([[0.25]]), torch.tensor([[0.5]])
    >>> gp.retarget_weight(weight, gram, cross)
    tensor([[1.6667]])
    """
    weight, gram = methods.prepare(weight, gram)
    matrix = gram.matrix
    cross = arguments.tensor(cross, f"{gram.name}: cross", tuple(matrix.shape), device=matrix.device).to(matrix.dtype)
    arguments.finite(cross, f"{gram.name}: cross")
    pull = arguments.typed(pull, f"{gram.name}: pull", float)
    if pull <= 0:
        raise GrampruneError(f"{gram.name}: the pull towards the dense weights is {pull}; expected more than 0.")
    inverse, _ = gram.inverse(pull, even=True)  # of N⁻¹(G + λI)N⁻¹, with N the inputs' norms
    # (G + λI)⁻¹(C + λI) = I + (G + λI)⁻¹(C − G): a change, which is exactly zero where nothing has changed.
    change = weight @ (cross - matrix).T
    return (change.div_(gram.scale) @ inverse).div_(gram.scale).add_(weight)
