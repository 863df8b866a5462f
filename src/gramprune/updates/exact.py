"""Masked least squares: the exact optimum of ‖XWᵀ − XVᵀ‖² over V that is zero outside the mask.

When to use: the yardstick of every other update, and affordable: one Cholesky factorisation per row, of the smaller of
two systems. With K the kept and P the pruned inputs of a row,

    v_K = (H_KK)⁻¹ (Hw)_K    or    v = w − λ H⁻¹[P, :]  with  [H⁻¹]_PP λ = w_P    (arXiv 2410.15567, solution M)

Equivalent to mrp's solution M, which damps evenly and always takes the second form. Work: in·out·k²/3 and k² of memory
per row of a batch, k ≤ in/2. For very wide layers see pcg.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.gram import ESCALATIONS, Gram, log
from gramprune.numerics import rows_per_batch

DAMPING = 0.01


def update(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    damping: float = DAMPING,
) -> tuple[Tensor, dict]:
    """The optimal weights, zero outside the mask, and the damping that was needed."""
    return solve(weight, gram, mask, damping)


def solve(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    damping: float,
    even: bool = False,  # how it damps, see Gram
    always_pruned: bool = False,  # the second form even where it is the larger
) -> tuple[Tensor, dict]:
    """The optimal weights and the damping used: ten times more whenever a row's system is not positive definite."""
    dense = weight * gram.norms
    for _ in range(ESCALATIONS + 1):
        system, damping = gram.damped(damping, even)
        new = torch.empty_like(dense)
        order = mask.sum(dim=1).argsort(stable=True)  # rows with equally many weights together: no system is padded
        done = 0
        while done < len(order):
            row = mask[order[done]]
            by_pruned = always_pruned or 2 * int(row.sum()) > len(row)
            size = min(int(row.sum()), int((~row).sum())) + 1
            rows = order[done : done + rows_per_batch(3 * size**2, weight)]
            if by_pruned:
                inverse, damping = gram.inverse(damping, even=even)
                solved = _by_pruned(dense[rows], inverse, mask[rows])
            else:
                solved = _by_kept(dense[rows], system, mask[rows])
            if solved is None:
                break
            new[rows] = solved
            done += len(rows)
        else:
            # A dead input changes nothing: where a mask keeps it, its weights stay the dense ones.
            new = new.div_(gram.scale).where(~gram.dead, weight).where(mask, 0)
            return new, {"damping": damping}
        log.warning("%s: a row's system is not positive definite with damping %g.", gram.name, damping)
        damping = max(10 * damping, 1e-6)
    raise GrampruneError(
        f"{gram.name}: the systems of kept weights are not positive definite even with damping {damping / 10:g}; "
        "raise the update's damping, use more samples or `precision: float64`."
    )


def _by_kept(dense: Tensor, system: Tensor, mask: Tensor) -> Tensor | None:
    places, valid = _places(mask)
    right = (dense @ system).gather(1, places)
    kept = _solve(system, places, valid, right)
    return None if kept is None else torch.zeros_like(dense).scatter_add_(1, places, kept)


def _by_pruned(dense: Tensor, inverse: Tensor, mask: Tensor) -> Tensor | None:
    places, valid = _places(~mask)
    multipliers = _solve(inverse, places, valid, dense.gather(1, places))
    if multipliers is None:
        return None
    return dense - torch.zeros_like(dense).scatter_add_(1, places, multipliers) @ inverse


def _places(chosen: Tensor) -> tuple[Tensor, Tensor | None]:
    """Columns (rows, k) of what is chosen in each row, and which of them are real where rows have unequal numbers."""
    counts = chosen.sum(dim=1)
    most = int(counts.max())
    if bool((counts == most).all()):
        return chosen.nonzero()[:, 1].view(len(chosen), most), None
    places = chosen.sort(dim=1, descending=True, stable=True).indices[:, :most]
    return places, torch.arange(most, device=chosen.device) < counts[:, None]


def _solve(matrix: Tensor, places: Tensor, valid: Tensor | None, right: Tensor) -> Tensor | None:
    """Solutions (rows, k), zero where not valid, of every row's part of the matrix; None if one is not definite."""
    rows, k = places.shape
    flat = (places[:, :, None] * len(matrix) + places[:, None, :]).flatten()
    parts = matrix.reshape(-1).index_select(0, flat).view(rows, k, k)  # three times as fast as matrix[i, j]
    if valid is not None:
        parts.mul_(valid[:, :, None]).mul_(valid[:, None, :])
        parts.diagonal(dim1=1, dim2=2).add_(~valid)
        right = right * valid
    factor, info = torch.linalg.cholesky_ex(parts, out=(parts, torch.empty(0, dtype=torch.int32, device=right.device)))
    return None if info.any() else torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
