"""Gramprune: prune large language models after training, from one Gram matrix per linear input.

    >>> import torch
    >>> import gramprune as gp
    >>> weight, inputs = torch.randn(32, 64), torch.randn(512, 64)            # (out, in), (tokens, in)
    >>> gram = gp.Gram(inputs.T @ inputs)                                     # all that is needed of the inputs
    >>> pattern = gp.Pattern.parse("2:4")                                     # or 0.5, counted in rows or the matrix
    >>> mask = gp.select_mask(weight, gram, pattern, method="wanda")          # (out, in) bool, True = kept
    >>> mask, stats = gp.refine_mask(weight, gram, mask, pattern, method="sparseswaps")
    >>> new, stats = gp.update_weight(weight, gram, mask, method="admm")
    >>> mask, new, stats = gp.prune_weight(weight, gram, pattern, method="admm")   # chooses both together
    >>> 0 < gp.layer_error(weight, new, gram) < gp.layer_error(weight, weight * mask, gram)
    True

The examples in the docstrings of these names are run as tests; they begin with the same two imports. What type checkers
know of the names stands in `__init__.pyi`.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Gram": "gramprune.pruning.gram",
    "GrampruneError": "gramprune.errors",
    "Pattern": "gramprune.pruning.sparsity",
    "layer_error": "gramprune.pruning.gram",
    "prune_weight": "gramprune.pruning.joint",
    "refine_mask": "gramprune.pruning.refine",
    "retarget_weight": "gramprune.pruning.target",
    "select_mask": "gramprune.pruning.masks",
    "update_weight": "gramprune.pruning.updates",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Imports a public name when it is first used: a stage that needs no torch does not pay for it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gramprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
