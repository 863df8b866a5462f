"""Mask selection: which weights stay. Every method is `select(weight, gram, pattern, **options) -> mask`."""

import sys

from torch import Tensor

from gramprune import methods
from gramprune.gram import Gram
from gramprune.sparsity import Pattern


def select_mask(
    weight: Tensor,  # (out, in) dense
    gram: Tensor | Gram,  # (in, in)
    pattern: Pattern,
    method: str,
    **options,
) -> Tensor:
    """(out, in) bool, True = kept, with exactly the pattern's zeros.

    Raises GrampruneError for an unknown method or a matrix that cannot have the pattern.
    """
    select = methods.load(sys.modules[__name__], method, "select")
    weight, gram = methods.prepare(weight, gram)
    pattern.check(weight.shape[1], gram.name)
    return select(weight, gram, pattern, **options)
