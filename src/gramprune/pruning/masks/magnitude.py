"""Magnitude: prune the smallest |W|. Needs no calibration data; the baseline that every method must beat."""

from torch import Tensor

from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,  # not used
    pattern: Pattern,
) -> Tensor:
    """(out, in) bool, True = kept: score |W_ij|."""
    return pattern.mask(weight.abs())
