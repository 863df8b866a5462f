"""The matrices of a block, seen while it works: every product of one of its parameters with something else.

Below modules and autograd torch sees `mm`, `addmm`, `bmm`. An operand in a parameter's memory is that parameter, or the
part of its rows that the operand's place says; its strides tell the orientation, and the other operand is the input.
So `nn.Linear`, `Conv1D`, a bare parameter, a loop over fused experts and a `bmm` over all of them are one case, with no
code per family.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

OPERANDS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Places of a product's two matrices among the arguments."""


class Enough(Exception):
    """Ends a pass in which all that is wanted has been seen."""


class Matrix(NamedTuple):
    """A matrix that a product was seen of."""

    parameter: str  # name in the block
    part: int | None  # which of the parameter's equal parts, as an expert's; None for all of it
    parts: int  # how many there are
    transposed: bool  # whether it is stored as (in, out)
    shape: tuple[int, int]  # (out, in)


def name_of(parameter: str) -> str:
    """What a parameter's matrix is called: the linear's name, where it is one's weight."""
    return parameter.removesuffix(".weight")


def part_name(name: str, part: int | None) -> str:
    """What a part of a matrix is called, `mlp.experts.down_proj.7`."""
    return name if part is None else f"{name}.{part}"


class Products(TorchDispatchMode):
    """While it is active, `inputs` fills: from every matrix by name to its inputs (tokens, in), one per product.

    wanted: which matrices are noted, by the name without a part; all by default. computed: whether their products are,
    which takes long for many large ones; else they are all 1.
    enough: matrices after whose inputs a pass ends, by raising `Enough`, before the last product; none by default.
    `matrices` is of all passes; `clear` forgets the inputs of the last one, which are held in memory until then: two
    are the same if they are the same memory.
    """

    def __init__(self, block: nn.Module, wanted: Callable[[str], bool] = lambda name: True, computed: bool = True):
        super().__init__()
        self.matrices: dict[str, Matrix] = {}
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        self._owners: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, parameter in block.named_parameters():
            if parameter.ndim in (2, 3):
                self._owners[parameter.untyped_storage().data_ptr()].append((name, parameter))
        self.enough: set[str] = set()
        self._wanted, self._computed = wanted, computed

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        operands = OPERANDS.get(getattr(func, "overloadpacket", func).__name__)
        if operands:
            left, right = (args[place] for place in operands)
            for weight, other, second in ((right, left, True), (left, right, False)):
                if self._is_ours(weight) and not self._is_ours(other):
                    self._note(weight, other if second else other.mT, second)
                    if self.enough and self.enough <= self.inputs.keys():
                        raise Enough
                    if not self._computed:
                        return left.new_ones((*left.shape[:-1], right.shape[-1]))
                    break
        return func(*args, **(kwargs or {}))

    def clear(self) -> None:
        """Forget the inputs."""
        self.inputs.clear()

    def shares(self, names: Iterable[str] | None = None, equal: bool = False) -> dict[str, str]:
        """From every matrix, or those, to the first one of them with the very same inputs, in the order of products.

        equal: experts have the same inputs as the first one beside them where these have equal rows in any order.
        """
        first: dict[tuple, str] = {}
        chosen = self.inputs if names is None else names
        found = {name: first.setdefault(tuple(map(_memory, self.inputs[name])), name) for name in chosen}
        for name in found if equal else ():
            matrix = self.matrices[name]
            beside = part_name(name_of(matrix.parameter), 0)
            if matrix.part and beside in found and all(map(_same_rows, self.inputs[name], self.inputs[beside])):
                found[name] = found[beside]
        return found

    def _is_ours(self, operand: Tensor) -> bool:
        return operand.untyped_storage().data_ptr() in self._owners

    def _note(self, weight: Tensor, inputs: Tensor, second: bool) -> None:
        """A product of inputs (…, tokens, in) with a weight, (…, in, out) if it is the second operand."""
        if weight.ndim == 3 and (weight.stride(0) == 0 or len(weight) == 1):  # one matrix for a whole batch
            weight, inputs = weight[0], inputs.flatten(0, 1)
        pairs = [(weight, inputs)] if weight.ndim == 2 else zip(weight, inputs, strict=True)
        for each, rows in pairs:
            if (found := self._found(each, second)) and self._wanted(name_of(found.parameter)):
                name = part_name(name_of(found.parameter), found.part)
                self.matrices[name] = found
                # Of all experts at once, those rows are zero that are not routed to this one.
                self.inputs[name].append(rows if weight.ndim == 2 else rows[(rows != 0).any(dim=1)])

    def _found(self, operand: Tensor, second: bool) -> Matrix | None:
        """Which matrix an operand is; None for what is not whole rows of a parameter."""
        for name, parameter in self._owners[operand.untyped_storage().data_ptr()]:
            for turned in (False, True):
                rows = operand.mT if turned else operand
                if rows.shape[1] != parameter.shape[-1] or rows.stride() != parameter.stride()[-2:]:
                    continue
                step = parameter.stride(0) if parameter.ndim == 3 else parameter.stride(0) * len(rows)
                whole = len(parameter) if parameter.ndim == 3 else len(parameter) / len(rows)
                part = (rows.storage_offset() - parameter.storage_offset()) / step
                fits = parameter.ndim == 2 or len(rows) == parameter.shape[1]
                if fits and part == int(part) and whole == int(whole) and 0 <= part < whole:
                    outputs, inputs = rows.shape if turned == second else rows.shape[::-1]
                    index = None if whole == 1 else int(part)
                    return Matrix(name, index, int(whole), turned != second, (outputs, inputs))
        return None


def _memory(tensor: Tensor) -> tuple:
    """Equal for two tensors that are the same values in the same memory, neither changed meanwhile."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version


def _same_rows(one: Tensor, other: Tensor) -> bool:
    """Whether two have the same values in every column, in whatever order."""
    return torch.equal(one.sort(dim=0).values, other.sort(dim=0).values)


def rows_of_part(parameter: Tensor, part: int | None, parts: int) -> Tensor:
    """The matrix that one of a parameter's equal parts is, or all of it, in the stored orientation; a view."""
    if parameter.ndim == 3:
        return parameter[part or 0]
    return parameter if part is None else parameter.chunk(parts)[part]
