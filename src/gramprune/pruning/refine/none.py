"""No refinement: the mask as it was selected."""

from torch import Tensor

from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern


def refine(
    weight: Tensor,  # (out, in), not used
    gram: Gram,  # not used
    mask: Tensor,  # (out, in) bool
    pattern: Pattern,  # not used
) -> tuple[Tensor, dict]:
    """The same mask."""
    return mask, {}
