"""Gramprune: prune large language models after training, from one Gram matrix per linear input.

    import gramprune as gp
    pattern = gp.Pattern.parse("2:4")                           # or 0.5 with granularity="row" | "matrix"
    mask = gp.select_mask(weight, gram, pattern, method="wanda")
    mask, stats = gp.refine_mask(weight, gram, mask, pattern, method="sparseswaps")
    new, stats = gp.update_weight(weight, gram, mask, method="admm")
    mask, new, stats = gp.prune_weight(weight, gram, pattern, method="admm")
    gp.layer_error(weight, new, gram)

Weights are (out, in), Gram matrices (in, in), masks bool with True = kept.
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
