"""Bias compensation: where a linear has a bias, it makes up for what pruning does to the mean of the outputs.

Over weights V and bias c together, ‖X(W−V)ᵀ + 1(b−c)‖² is least at c = b + (W−V)μ, with μ the mean input; what is left
is the layer error of V by the Gram matrix of X − 1μᵀ. So every mask method and update takes that one instead of G, and
is exact for both. No more needs to be stored than the inputs' sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram

CONSTANT = 1e-6
"""An input whose variance is a smaller share of its mean square counts as constant: the bias has all that it gives."""


def mean_input(gram: Gram) -> Tensor:
    """(in,) float64, the mean of every input. Raises GrampruneError for a Gram matrix without sums or tokens."""
    if gram.sums is None or not gram.tokens:
        raise GrampruneError(f"{gram.name}: bias compensation needs the inputs' sums and the number of tokens.")
    return gram.sums.double() / gram.tokens


def centred(gram: Gram) -> Gram:
    """The Gram matrix G − n·μμᵀ of inputs minus their mean μ over n tokens, in the same dtype.

    Constant inputs are dead in it. Raises GrampruneError for a Gram matrix without sums or tokens.
    """
    mean = mean_input(gram)
    matrix = gram.matrix.double()
    matrix = (matrix + matrix.T) / 2 - gram.tokens * torch.outer(mean, mean)  # rounding is as large as what is left
    varying = matrix.diagonal() > CONSTANT * gram.matrix.diagonal().double()
    matrix = matrix * varying[:, None] * varying[None, :]
    # What is left of rounding must not exceed what two inputs can have in common.
    reach = matrix.diagonal().sqrt()
    matrix = matrix.clamp(-torch.outer(reach, reach), torch.outer(reach, reach))
    return Gram(matrix.to(gram.matrix.dtype), gram.name, torch.zeros_like(gram.norms), gram.tokens)


def compensated(bias: Tensor, weight: Tensor, new: Tensor, mean: Tensor) -> Tensor:
    """The best bias (out,) float64 beside a pruned weight. weight, new: (out, in). mean: (in,), as `mean_input`."""
    return bias.double() + (weight.double() - new.double()) @ mean
