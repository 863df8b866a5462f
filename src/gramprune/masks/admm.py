"""The mask that gradual ADMM ends with (Boža, arXiv 2401.02938); its weights are dropped.

When to use: as the mask for another update. To keep ADMM's own weights, use the joint method.
"""

from torch import Tensor

from gramprune.gram import Gram
from gramprune.joint.admm import prune
from gramprune.sparsity import Pattern


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    **options,  # of `gramprune.joint.admm.prune`
) -> Tensor:
    """(out, in) bool, True = kept."""
    return prune(weight, gram, pattern, **options)[0]
