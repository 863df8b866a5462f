"""Methods that choose mask and weights together: `prune(weight, gram, pattern, **options) -> (mask, new, stats)`."""

import sys
from typing import Any

from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning import arguments, methods
from gramprune.pruning.gram import Gram
from gramprune.pruning.numerics import finite
from gramprune.pruning.sparsity import Pattern


def prune_weight(
    weight: Tensor,  # (out, in) dense
    gram: Tensor | Gram,  # (in, in)
    pattern: Pattern,
    method: str,
    **options: Any,
) -> tuple[Tensor, Tensor, dict]:
    """Mask (out, in) bool, pruned weight (out, in) in the Gram matrix's dtype, and statistics.

    Raises GrampruneError for an unknown method, arguments that are not what they should be, a matrix that cannot have
    the pattern, or a result that is not finite.

    >>> weight, inputs = torch.randn(8, 16), torch.randn(64, 16)
    >>> gram = gp.Gram(inputs.T @ inputs)
    >>> mask, new, stats = gp.prune_weight(weight, gram, gp.Pattern.parse("2:4"), method="admm", iterations=30)
    >>> mask.reshape(-1, 4).sum(dim=1).unique(), stats["iterations"]
    (tensor([2]), 30)
    >>> gp.layer_error(weight, new, gram) < gp.layer_error(weight, weight * mask, gram)
    True
    """
    prune = methods.load(sys.modules[__name__], method, "prune")
    weight, gram = methods.prepare(weight, gram)
    methods.check_pattern(pattern, weight, gram)
    mask, new, stats = prune(weight, gram, pattern, **arguments.options(prune, options, f"{gram.name}: {method}"))
    if not finite(new):
        raise GrampruneError(f"{gram.name}: the method {method} gave NaN or infinite weights; raise its damping.")
    return mask, new, stats
