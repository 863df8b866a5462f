"""What the tests of refinements share: masks to begin with, a refined mask with its counts checked, errors of masks."""

from collections.abc import Callable

import reference
import torch
from problems import Problem
from torch import Tensor

from gramprune import Gram, Pattern, refine_mask, select_mask

SLUG = {"ids": lambda pattern: Pattern.parse(*pattern).slug}
STARTS = ("wanda", "magnitude", "random")


def gram_of(p: Problem) -> Gram:
    sums = p.inputs.double().sum(dim=0).to(p.inputs.dtype)  # rounded once, whatever the order
    return Gram(p.gram, "block 3 q_proj", sums=sums, tokens=len(p.inputs))


def start(p: Problem, pattern: tuple, method: str) -> Tensor:
    if method == "random":
        return reference.mask(torch.rand(p.weight.shape, generator=torch.Generator().manual_seed(3)), pattern)
    return select_mask(p.weight, p.gram, Pattern.parse(*pattern), method)


def run(p: Problem, mask: Tensor, pattern: tuple, method: str, **options) -> tuple[Tensor, dict]:
    refined, stats = refine_mask(p.weight, gram_of(p), mask, Pattern.parse(*pattern), method, **options)
    over_rows = pattern[1] == "matrix" and method != "dsnot"
    size = Pattern.parse(*pattern).group or (mask.numel() if over_rows else mask.shape[1])
    assert torch.equal(*(m.reshape(-1, size).sum(dim=1) for m in (mask, refined)))
    return refined, stats


def correlated(seed: int, rows: int, columns: int, noise: float = 1.0, dtype: torch.dtype = torch.float64) -> Problem:
    """Inputs that share eight directions, and noise of their own: with little of it, couplings are near 1."""
    generator = torch.Generator().manual_seed(seed)
    inputs = noise * torch.randn(4 * columns, columns, generator=generator).double()
    shared = torch.randn(4 * columns, 8, generator=generator).double()
    inputs += shared @ torch.randn(8, columns, generator=generator).double()
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    return Problem(weight, inputs.to(dtype), (inputs.T @ inputs).to(dtype))


def row_errors(p: Problem) -> Callable[[int, Tensor], Tensor]:
    """For `reference.exchanges`: with kept weights as they are."""
    W, G = p.weight.double(), p.gram.double()
    return lambda i, masks: reference.damped_error(W[i].expand(masks.shape), W[i] * masks, G)


def updated_errors(p: Problem) -> Callable[[int, Tensor], Tensor]:
    """For `reference.exchanges`: with kept weights that are the damped masked least squares."""
    H, W = reference.ridge(p.gram, 0.01), p.weight.double() * (p.gram.diagonal() > 0)
    return lambda i, masks: reference.optimal_errors(W[i], H, masks)


def layer_sum(errors: Callable, mask: Tensor) -> float:
    return sum(float(errors(i, kept[None])) for i, kept in enumerate(mask))


def assert_no_swap_helps(p: Problem, mask: Tensor, pattern: tuple) -> None:
    """By all pairs: none lowers a row's error by more than the tolerance and rounding."""
    W, G = p.weight.double(), p.gram.double()
    for w, kept in zip(W, mask, strict=True):
        z = w * ~kept
        if places := reference.pairs(kept, pattern):
            rounding = torch.finfo(p.weight.dtype).eps * float((w.abs() * G.diagonal().sqrt()).sum() ** 2)
            assert reference.swap_changes(w, G, kept, places).min() >= -1e-6 * float(z @ G @ z) - rounding
