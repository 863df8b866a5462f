"""Tables from a method's name to its function: in `masks/`, `refine/`, `updates/`, `joint/` a file is a method.

The names are read from the folder, so adding a method is adding a file; a method is imported when it is used, so
that the others' code stays out of a stage's fingerprint and start-up time.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import torch
from torch import Tensor

from gramprune.errors import GrampruneError, suggest
from gramprune.pruning.gram import Gram, as_gram
from gramprune.pruning.numerics import finite


def names(package: ModuleType) -> list[str]:
    """The methods of a package, sorted: `swaps-reoptimised` is the file swaps_reoptimised.py."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(package.__path__))


def load(package: ModuleType, method: str, function: str, known: list[str] | None = None) -> Callable:
    """The function of that method. known: the names to suggest, the package's by default.

    Raises GrampruneError for an unknown name, with the nearest known one.
    """
    if method not in names(package):
        kind = package.__name__.rpartition(".")[2]
        raise GrampruneError(f"there is no method {method!r} in {kind}; {suggest(method, known or names(package))}")
    return getattr(import_module(f"{package.__name__}.{method.replace('-', '_')}"), function)


def prepare(
    weight: Tensor,  # (out, in), any float dtype
    gram: Tensor | Gram,  # (in, in)
) -> tuple[Tensor, Gram]:
    """Weight and Gram matrix in one dtype (the Gram matrix's) and checked, as every method expects them."""
    gram = as_gram(gram)
    if weight.ndim != 2 or weight.shape[1] != gram.matrix.shape[0]:
        raise GrampruneError(
            f"{gram.name}: the weight is {tuple(weight.shape)}, its Gram matrix {tuple(gram.matrix.shape)}; "
            "expected (out, in) and (in, in)."
        )
    if not finite(weight):
        raise GrampruneError(f"{gram.name}: the dense weight holds NaN or infinite values.")
    return weight.to(gram.matrix.dtype), gram


def check_mask(mask: Tensor, weight: Tensor, gram: Gram) -> None:
    """Raises GrampruneError unless the mask is bool and has the weight's shape."""
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise GrampruneError(
            f"{gram.name}: the mask is {mask.dtype} {tuple(mask.shape)}; expected torch.bool {tuple(weight.shape)}."
        )
