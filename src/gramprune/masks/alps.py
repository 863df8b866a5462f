"""The mask that ALPS ends with (Meng et al., arXiv 2406.07831); its weights are dropped.

When to use: as the mask for another update. To keep ALPS's own weights, use the joint method.
"""

from torch import Tensor

from gramprune.gram import Gram
from gramprune.joint.alps import prune
from gramprune.sparsity import Pattern


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    **options,  # of `gramprune.joint.alps.prune`
) -> Tensor:
    """(out, in) bool, True = kept."""
    return prune(weight, gram, pattern, **options)[0]
