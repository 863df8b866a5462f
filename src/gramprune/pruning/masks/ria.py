"""RIA, relative importance and activations (Zhang et al., ICLR 2024, "Plug-and-Play").

When to use: instead of Wanda where some outputs or inputs have small weights throughout: a weight counts by its share
of its row and of its column, so that none of them loses all that it has. The price is the same, a sort.
"""

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern

POWER = 0.5  # the authors' released code


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    power: float = POWER,  # of the inputs' norms: 0 leaves them out
) -> Tensor:
    """(out, in) bool, True = kept: score (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · sqrt(G_jj)^power."""
    if power < 0:
        raise GrampruneError(f"{gram.name}: ria needs power of 0 or more; found {power}.")
    magnitude = weight.abs()
    tiny = torch.finfo(weight.dtype).tiny  # a row or column of zeros has shares of zero
    scores = magnitude / magnitude.sum(dim=0).clamp_(min=tiny)
    scores += magnitude.div_(magnitude.sum(dim=1, keepdim=True).clamp_(min=tiny))
    return pattern.mask(scores.mul_(gram.norms**power))
