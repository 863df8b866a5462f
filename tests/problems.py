"""Small layer problems, each structure defined once, and the matrix in which the methods are tested.

Everything comes from seeded generators: the same problem in every test, with its values rounded to the dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gramprune.pruning.sparsity import Pattern

OUT, IN, TOKENS = 6, 16, 64
DEAD = (1, 2, 3, 8, 13)  # of the structure dead_inputs; three of them are in one group of four
PATTERNS = [(0.5, "row"), (0.5, "matrix"), (0.7, "row"), ("2:4", "row"), ("1:4", "row"), ("4:8", "row")]
DTYPES = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Problem:
    """A linear layer with what it saw."""

    weight: Tensor  # (out, in)
    inputs: Tensor  # (tokens, in)
    gram: Tensor  # (in, in)


def well_conditioned(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs of different norms; the scaled Gram matrix has a condition of about ten."""
    return _weight(generator), _normal(generator, TOKENS, IN) * torch.linspace(0.5, 3, IN, dtype=torch.float64)


def rank_deficient(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fewer tokens than inputs."""
    return _weight(generator), _normal(generator, IN // 2, IN)


def dead_inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The inputs `DEAD` are zero on every token."""
    weight, inputs = well_conditioned(generator)
    inputs[:, DEAD] = 0
    return weight, inputs


def ties(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four values of weights; columns that occur twice and have all the same norm. Exact in every dtype."""
    signs = torch.randint(0, 2, (16, IN // 2), generator=generator).double() * 2 - 1
    weight = torch.tensor([-1.0, -0.5, 0.5, 1.0]).double()[torch.randint(0, 4, (OUT, IN), generator=generator)]
    return weight, torch.cat([signs, signs], dim=1)


def one_token(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A Gram matrix of rank one."""
    return _weight(generator), _normal(generator, 1, IN)


def ill_conditioned(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The Gram matrix has a condition of 1e8."""
    left = torch.linalg.qr(_normal(generator, TOKENS, IN)).Q
    right = torch.linalg.qr(_normal(generator, IN, IN)).Q
    return _weight(generator), left * torch.logspace(2, -2, IN, dtype=torch.float64) @ right.T


def one_row(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A linear with one output."""
    weight, inputs = well_conditioned(generator)
    return weight[:1], inputs


def one_column(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A linear with one input: no pattern can be had within its rows."""
    weight, inputs = well_conditioned(generator)
    return weight[:, :1], inputs[:, :1]


STRUCTURES: dict[str, Callable] = {
    make.__name__: make
    for make in (
        well_conditioned,
        rank_deficient,
        dead_inputs,
        ties,
        one_token,
        ill_conditioned,
        one_row,
        one_column,
    )
}


def problem(structure: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    """The problem of that structure; its Gram matrix is that of the rounded inputs, itself rounded once."""
    generator = torch.Generator().manual_seed(100 * seed + list(STRUCTURES).index(structure))
    weight, inputs = (tensor.to(dtype) for tensor in STRUCTURES[structure](generator))
    return Problem(weight, inputs, (inputs.double().T @ inputs.double()).to(dtype))


def matrix(*methods: str, granularities: tuple[str, ...] = ("row", "matrix")) -> list:
    """Parameters method × pattern × structure × dtype, where there is more than one weight to choose from."""
    return [
        pytest.param(
            method,
            pattern,
            structure,
            dtype,
            id=f"{method}-{Pattern.parse(*pattern).slug}-{structure}-{str(dtype).removeprefix('torch.')}",
        )
        for method in methods
        for pattern in PATTERNS
        for structure in STRUCTURES
        for dtype in DTYPES
        if pattern[1] in granularities and (structure != "one_column" or pattern[1] == "matrix")
    ]


def tolerance(dtype: torch.dtype) -> float:
    """What rounding may do to a result of a small problem, relative to its largest value."""
    return 1000 * torch.finfo(dtype).eps


def assert_near(found: Tensor, expected: Tensor) -> None:
    """`found` is `expected` (float64) up to the rounding of its own dtype."""
    difference = (found.double() - expected).abs().max()
    assert difference <= tolerance(found.dtype) * (1 + expected.abs().max()), f"differs by {difference:g}"


def assert_sentence(error: pytest.ExceptionInfo, *parts: object) -> None:
    """The error is one line that ends with a full stop and holds all the parts."""
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    for part in parts:
        assert str(part) in text, f"{part!r} is not in {text!r}"


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _weight(generator: torch.Generator) -> Tensor:
    return _normal(generator, OUT, IN)
