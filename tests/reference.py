"""The published formulas in float64, one by one and with plain loops: what the methods are compared with.

Nothing here is imported from the package. A pattern is `(value, granularity)` as in config.yaml.
"""

import torch
from torch import Tensor


def choices(shape: tuple[int, int], pattern: tuple) -> list[list[tuple[int, int]]]:
    """The sets of weights, in reading order, of which each loses its own share."""
    (rows, columns), (value, granularity) = shape, pattern
    if isinstance(value, str):
        group = int(value.split(":")[1])
        return [[(i, g + j) for j in range(group)] for i in range(rows) for g in range(0, columns, group)]
    if granularity == "matrix":
        return [[(i, j) for i in range(rows) for j in range(columns)]]
    return [[(i, j) for j in range(columns)] for i in range(rows)]


def sparsity(pattern: tuple) -> float:
    """Fraction of zeros: 3/4 for 1:4."""
    value = pattern[0]
    if not isinstance(value, str):
        return value
    keep, group = value.split(":")
    return (int(group) - int(keep)) / int(group)


def mask(scores: Tensor, pattern: tuple, fraction: float | None = None) -> Tensor:
    """Of every choice the smallest scores are pruned; of equal ones the lowest index first."""
    kept = torch.ones(scores.shape, dtype=torch.bool)
    values = scores.tolist()
    for choice in choices(scores.shape, pattern):
        count = round((sparsity(pattern) if fraction is None else fraction) * len(choice))
        # Python's sort is stable: equal scores stay in reading order.
        for i, j in sorted(choice, key=lambda place: values[place[0]][place[1]])[:count]:
            kept[i, j] = False
    return kept


def magnitude(weight: Tensor, gram: Tensor, pattern: tuple) -> Tensor:
    """Score |W_ij|."""
    return mask(weight.double().abs(), pattern)


def wanda(weight: Tensor, gram: Tensor, pattern: tuple) -> Tensor:
    """Score |W_ij| · sqrt(G_jj) (arXiv 2306.11695)."""
    return mask(weight.double().abs() * gram.double().diagonal().sqrt(), pattern)


def admm(weight: Tensor, gram: Tensor, choose, iterations: int = 20, damping: float = 0.1, rho: float = 1.0):
    """ADMM as printed (arXiv 2401.02938): the mask of each step is `choose(step from 1, V + U)`."""
    W, G = weight.double(), gram.double()
    n = G.diagonal().sqrt()
    dead = n == 0
    n = torch.where(dead, torch.ones_like(n), n)  # nothing is divided by a dead input's zero
    damped = G / n[:, None] / n[None, :] + damping * torch.eye(len(G), dtype=torch.float64)
    factor = torch.linalg.cholesky(damped + rho * torch.eye(len(G), dtype=torch.float64))
    scaled = W * torch.where(dead, torch.zeros_like(n), n)
    V, U = scaled, torch.zeros_like(W)
    for step in range(1, iterations + 1):
        M = choose(step, V + U)
        Z = (V + U) * M
        U = U + V - Z
        V = torch.cholesky_solve((scaled @ damped + rho * (Z - U)).T, factor).T
    new = (V + U) * M / n
    new[:, dead] = (W * M)[:, dead]  # they change nothing, so they stay
    return M, new


def fixed_admm(weight: Tensor, gram: Tensor, given: Tensor, **options) -> Tensor:
    """The update for a given mask."""
    return admm(weight, gram, lambda step, current: given, **options)[1]


def gradual_admm(weight: Tensor, gram: Tensor, pattern: tuple, schedule: str = "ramp", ramp: int = 15, **options):
    """Mask and weights, the mask re-chosen from |V + U| at s_t = s − s(1 − t/ramp)³ for t = 1 … ramp."""
    s, chosen = sparsity(pattern), None

    def choose(step: int, current: Tensor) -> Tensor:
        nonlocal chosen
        if step > ramp:
            return chosen
        s_t = s if schedule == "jump" else s - s * (1 - step / ramp) ** 3
        chosen = _at(current.abs(), pattern, s_t, last=schedule == "jump" or step == ramp)
        return chosen

    return admm(weight, gram, choose, **options)


def _at(scores: Tensor, pattern: tuple, s_t: float, last: bool) -> Tensor:
    """A mask on the way to the pattern; N:M: the N best of a group are safe, the worst of all others go."""
    if last:
        return mask(scores, pattern)
    if not isinstance(pattern[0], str):
        return mask(scores, pattern, s_t)
    final = mask(scores, pattern)
    rest = [(float(scores[i, j]), i, j) for i, j in (~final).nonzero().tolist()]
    kept = torch.ones(scores.shape, dtype=torch.bool)
    for _, i, j in sorted(rest)[: round(s_t * scores.numel())]:
        kept[i, j] = False
    return kept


def layer_error(weight: Tensor, new: Tensor, inputs: Tensor) -> float:
    """‖X Wᵀ − X Vᵀ‖²_F from the inputs themselves."""
    X = inputs.double()
    return float((X @ weight.double().T - X @ new.double().T).square().sum())


def least_squares(weight: Tensor, gram: Tensor, given: Tensor) -> Tensor:
    """The exact optimum for a mask, row by row: v_K = G_KK⁻¹ (G w)_K."""
    W, G = weight.double(), gram.double()
    new = torch.zeros_like(W)
    for i, kept in enumerate(given):
        right = (G @ W[i])[kept]
        new[i, kept] = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(G[kept][:, kept]))[:, 0]
    return new
