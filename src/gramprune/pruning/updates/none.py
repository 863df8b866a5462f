"""No update: the kept weights stay as they were. What a mask is worth by itself."""

from torch import Tensor

from gramprune.pruning.gram import Gram


def update(
    weight: Tensor,  # (out, in)
    gram: Gram,  # not used
    mask: Tensor,  # (out, in) bool
) -> tuple[Tensor, dict]:
    """`W ∘ M`."""
    return weight.where(mask, 0), {}
