"""Wanda: prune the smallest |W_ij| · ‖X_j‖ (Sun et al., arXiv 2306.11695).

When to use: a strong mask for the price of a sort, and the usual warm start for refinements and updates. Inputs
that were never active score zero and go first.
"""

from torch import Tensor

from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
) -> Tensor:
    """(out, in) bool, True = kept: score |W_ij| · sqrt(G_jj)."""
    return pattern.mask(weight.abs() * gram.norms)
