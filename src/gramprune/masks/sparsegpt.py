"""The mask that SparseGPT's sweep ends with (arXiv 2301.00774); its weights are dropped.

When to use: as the mask for another update. To keep SparseGPT's own weights, use the joint method.
"""

from torch import Tensor

from gramprune.gram import Gram
from gramprune.joint.sparsegpt import prune
from gramprune.sparsity import Pattern


def select(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    **options,  # of `gramprune.joint.sparsegpt.prune`
) -> Tensor:
    """(out, in) bool, True = kept."""
    return prune(weight, gram, pattern, **options)[0]
