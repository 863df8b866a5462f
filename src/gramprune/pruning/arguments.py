"""What callers hand over, checked before anything is computed: one sentence says what was found and what is expected.

Files and settings have checks of their own; these are for those who call the library. torch is not imported here:
patterns are known without it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from inspect import signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args

from gramprune.errors import GrampruneError, suggest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int | str, ...]
"""Sizes, and names for those that may be any above 0; sizes of the same name are equal."""

KINDS = {int: "an integer", float: "a finite number", str: "a text", bool: "True or False", NoneType: "None"}
NUMBERS: dict[type, Any] = {int: Integral, float: Real}


def tensor(
    value: Any,
    name: str,  # how errors call it
    shape: Shape,
    dtypes: tuple[torch.dtype, ...] = (),  # one of these; by default any floating one
    device: torch.device | None = None,  # by default any
) -> Tensor:
    """The tensor without gradients. Raises GrampruneError unless it is dense, with values, and as it should be."""
    import torch

    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_nested):
        right = value.dtype in dtypes if dtypes else value.is_floating_point()
        if right and _fits(value.shape, shape) and device in (None, value.device):
            return value.detach()
    sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    expected = f"a torch.Tensor ({sizes}) of {' or '.join(map(str, dtypes)) or 'a floating dtype'}"
    where = "" if device is None else f" on {device}"
    raise GrampruneError(f"{name} is {described(value)}; expected {expected}{where}{_remedy(value, shape)}.")


def finite(values: Tensor, name: str) -> None:
    """Raises GrampruneError for NaN and infinite values."""
    from gramprune.pruning import numerics

    if not numerics.finite(values):
        raise GrampruneError(f"{name} holds NaN or infinite values in {values.dtype}.")


def typed(value: Any, name: str, *kinds: type) -> Any:
    """The value as the first of `kinds` (`KINDS`, others are not checked) that it is; numpy's numbers are numbers.

    Raises GrampruneError for a value of another kind, for NaN and infinity.
    """
    for kind in kinds:
        if kind in NUMBERS:
            if isinstance(value, NUMBERS[kind]) and not isinstance(value, bool) and _is_finite(value):
                return kind(value)
        elif kind not in KINDS or isinstance(value, kind):
            return value
    raise GrampruneError(f"{name} is {described(value)}; expected {' or '.join(KINDS[kind] for kind in kinds)}.")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def options(function: Callable, given: dict[str, Any], method: str) -> dict[str, Any]:
    """The options of a method's function, of the types that its parameters say. method: how errors call it.

    Whether they are in range is for the method to say. Raises GrampruneError for an unknown one or another type.
    """
    every = signature(function, eval_str=True).parameters.values()
    kinds = {each.name: each.annotation for each in every if each.default is not each.empty}
    for name in given:
        if name not in kinds:
            raise GrampruneError(
                f"{method} has no option {name!r}; {suggest(name, kinds) if kinds else 'it has none.'}"
            )
    return {
        name: typed(value, f"{method}'s {name}", *(get_args(kind) if isinstance(kind, UnionType) else [kind]))
        for name, value in given.items()
        for kind in [kinds[name]]
    }


def described(value: Any) -> str:
    """A value of any type in a few words."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        if isinstance(value, str | Real | NoneType) and len(repr(value)) <= 60:
            return repr(value)
        kind = type(value)
        return f"of type {kind.__module__}.{kind.__qualname__}".replace(" builtins.", " ")
    if value.is_nested or value.layout != torch.strided:
        return f"a tensor of layout {'nested' if value.is_nested else value.layout}"
    return f"{value.dtype} {tuple(value.shape)} on {value.device}{', without values' if value.is_meta else ''}"


def _fits(found: tuple[int, ...], shape: Shape) -> bool:
    if len(found) != len(shape) or 0 in found:
        return False
    named = dict(zip(shape, found, strict=True))
    return all(
        size == (named[want] if isinstance(want, str) else want) for size, want in zip(found, shape, strict=True)
    )


def _remedy(value: Any, shape: Shape) -> str:
    """What to do, where that is clear from what was found."""
    if type(value).__module__.partition(".")[0] == "numpy":
        return ": torch.from_numpy makes one"
    torch = sys.modules.get("torch")
    if torch and isinstance(value, torch.Tensor) and not value.is_nested and not _fits(value.shape, shape):
        return ": transpose it" if _fits(value.shape[::-1], shape) else ""
    return ""
