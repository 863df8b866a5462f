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
from gramprune.pruning import arguments
from gramprune.pruning.arguments import described, tensor
from gramprune.pruning.gram import Gram, as_gram
from gramprune.pruning.sparsity import Pattern


def names(package: ModuleType) -> list[str]:
    """The methods of a package, sorted: `swaps-reoptimised` is the file swaps_reoptimised.py."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(package.__path__))


def load(package: ModuleType, method: str, function: str, known: list[str] | None = None) -> Callable:
    """The function of that method. known: the names to suggest, the package's by default.

    Raises GrampruneError for an unknown name, with the nearest known one.
    """
    if not isinstance(method, str) or method not in names(package):
        kind = package.__name__.rpartition(".")[2]
        raise GrampruneError(
            f"there is no method {described(method)} in {kind}; {suggest(str(method), known or names(package))}"
        )
    return getattr(import_module(f"{package.__name__}.{method.replace('-', '_')}"), function)


def prepare(
    weight: Tensor,  # (out, in), any float dtype
    gram: Tensor | Gram,  # (in, in)
) -> tuple[Tensor, Gram]:
    """Weight and Gram matrix in one dtype (the Gram matrix's) and checked, as every method expects them."""
    gram = as_gram(gram)
    shape, device = ("out", len(gram.matrix)), gram.matrix.device
    weight = tensor(weight, f"{gram.name}: weight", shape, device=device).to(gram.matrix.dtype)
    arguments.finite(weight, f"{gram.name}: weight")
    return weight.contiguous(), gram


def check_pattern(pattern: Pattern, weight: Tensor, gram: Gram) -> None:
    """Raises GrampruneError unless it is a pattern that the weight can have."""
    if not isinstance(pattern, Pattern):
        raise GrampruneError(
            f"{gram.name}: pattern is {described(pattern)}; expected a Pattern, such as Pattern.parse('2:4')."
        )
    pattern.check(weight.shape[1], gram.name, weight.shape[0])


def check_mask(mask: Tensor, weight: Tensor, gram: Gram) -> Tensor:
    """The mask, contiguous. Raises GrampruneError unless it is bool and has the weight's shape."""
    name = f"{gram.name}: mask"
    return tensor(mask, name, tuple(weight.shape), (torch.bool,), weight.device).contiguous()
