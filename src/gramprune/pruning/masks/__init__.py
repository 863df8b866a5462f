"""Mask selection: which weights stay. Every method is `select(weight, gram, pattern, **options) -> mask`.

A joint method selects masks too: its weights are dropped then, and another update can follow.
"""

import sys
from typing import Any

from torch import Tensor

from gramprune.pruning import arguments, joint, methods
from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern


def names() -> list[str]:
    """Every method that selects a mask, sorted."""
    return sorted([*methods.names(sys.modules[__name__]), *methods.names(joint)])


def select_mask(
    weight: Tensor,  # (out, in) dense
    gram: Tensor | Gram,  # (in, in)
    pattern: Pattern,
    method: str,
    **options: Any,
) -> Tensor:
    """(out, in) bool, True = kept, with exactly the pattern's zeros.

    Raises GrampruneError for an unknown method, arguments that are not what they should be, or a matrix that cannot
    have the pattern.

    Wanda keeps a small weight whose input is large. Which methods there are, an unknown one says:

    >>> weight = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    >>> gram = torch.diag(torch.tensor([64.0, 1.0, 1.0, 1.0]))  # the first input is eight times as large
    >>> gp.select_mask(weight, gram, gp.Pattern.parse(0.5), method="magnitude")
    tensor([[False, False,  True,  True]])
    >>> gp.select_mask(weight, gram, gp.Pattern.parse(0.5), method="wanda")
    tensor([[ True, False, False,  True]])
    >>> gp.select_mask(weight, gram, gp.Pattern.parse(0.5), method="wnda")
    Traceback (most recent call last):
    gramprune.errors.GrampruneError: there is no method 'wnda' in masks; did you mean 'wanda'? Known: admm, alps, ...
    """
    if method in methods.names(joint):
        return joint.prune_weight(weight, gram, pattern, method, **options)[0]
    select = methods.load(sys.modules[__name__], method, "select", names())
    weight, gram = methods.prepare(weight, gram)
    methods.check_pattern(pattern, weight, gram)
    return select(weight, gram, pattern, **arguments.options(select, options, f"{gram.name}: {method}"))
