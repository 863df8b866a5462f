"""Weight updates for a given mask: every method is `update(weight, gram, mask, **options) -> (new, stats)`."""

import sys
from typing import Any

from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning import arguments, methods
from gramprune.pruning.gram import Gram
from gramprune.pruning.numerics import finite


def update_weight(
    weight: Tensor,  # (out, in) dense
    gram: Tensor | Gram,  # (in, in)
    mask: Tensor,  # (out, in) bool, True = kept
    method: str,
    **options: Any,
) -> tuple[Tensor, dict]:
    """The pruned weight (out, in) in the Gram matrix's dtype, zero where the mask is False, and its statistics.

    Raises GrampruneError for an unknown method, arguments that are not what they should be, or a result that is not
    finite.

    Two inputs are always equal, so the weight that is kept takes over what the other one did:

    >>> weight, mask = torch.tensor([[2.0, 1.0]]), torch.tensor([[True, False]])
    >>> new, stats = gp.update_weight(weight, torch.ones(2, 2), mask, method="exact")
    >>> new.round()  # 2.99: damping draws a little towards the dense weights
    tensor([[3., 0.]])
    """
    update = methods.load(sys.modules[__name__], method, "update")
    weight, gram = methods.prepare(weight, gram)
    mask = methods.check_mask(mask, weight, gram)
    new, stats = update(weight, gram, mask, **arguments.options(update, options, f"{gram.name}: {method}"))
    if not finite(new):
        raise GrampruneError(f"{gram.name}: the update {method} gave NaN or infinite weights; raise its damping.")
    return new, stats
