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
from torch.nn.functional import pad

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import ESCALATIONS, Gram, log
from gramprune.pruning.numerics import equal_rows, parts, rows_per_piece

DAMPING = 0.01
SYSTEMS = 2**22  # elements of a batch of systems and their indices, on a CPU
ALIASED, PADDING = 256, 16
"""Rows that lie so many elements apart compete for the same lines of a CPU's cache: Cholesky takes 1.5 times as long
there (512, 1024, 2048: just what 2:4 gives) as with a few equations more, each v = 0."""


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
    if damping < 0:
        raise GrampruneError(f"{gram.name}: the masked least squares need damping of 0 or more; found {damping}.")
    dense = weight * gram.norms
    for _ in range(ESCALATIONS + 1):
        damping = gram.damped(damping, even)[1]
        new = _rows(dense, mask, gram, damping, even, always_pruned)
        if new is not None:
            return gram.unscaled(new, weight, mask), {"damping": damping}
        log.warning("%s: a row's system is not positive definite with damping %g.", gram.name, damping)
        damping = max(10 * damping, 1e-6)
    raise GrampruneError(
        f"{gram.name}: the systems of kept weights are not positive definite even with damping {damping / 10:g}; "
        "raise the update's damping, use more samples or `precision: float64`."
    )


def _rows(dense: Tensor, mask: Tensor, gram: Gram, damping: float, even: bool, always_pruned: bool) -> Tensor | None:
    """The optimum in scaled coordinates, or None if a row's system is not positive definite."""
    columns, new = mask.shape[1], torch.empty_like(dense)
    by_kept = (2 * mask.sum(dim=1) <= columns) & (not always_pruned)
    others = (~by_kept).nonzero()[:, 0]
    if by_kept.any():
        system = gram.damped(damping, even)[0]
        torch.mm(dense, system, out=new)  # the right-hand sides, each there until its solution takes the place
    if len(others):
        inverse = gram.inverse(damping, even=even)[0]
    for rows, kept, pruned in equal_rows(mask, lambda count: 3 * min(count, columns - count) ** 2 + 1, dense, SYSTEMS):
        if by_kept[rows[0]]:
            chosen, solution = kept, _solve(system, kept, new[rows].gather(1, kept))
        else:
            chosen, solution = pruned, _solve(inverse, pruned, dense[rows].gather(1, pruned))
        if solution is None:
            return None
        new[rows] = torch.zeros_like(dense[rows]).scatter_(1, chosen, solution)
    for rows in others.split(rows_per_piece(dense)) if len(others) else ():  # from multipliers to weights
        new[rows] = dense[rows].addmm_(new[rows], inverse, alpha=-1)
    return new


def _solve(matrix: Tensor, chosen: Tensor, right: Tensor) -> Tensor | None:
    """Solutions (b, k) of b systems, `matrix` at the chosen (b, k), or None if one is not positive definite."""
    size = chosen.shape[1]
    if size % ALIASED == 0 and not matrix.is_cuda:
        chosen, right = pad(chosen, (0, PADDING)), pad(right, (0, PADDING))
    systems = parts(matrix, chosen, chosen)
    systems[:, size:], systems[:, :, size:] = 0, 0  # the padding took whatever the first input has
    systems.diagonal(dim1=1, dim2=2)[:, size:] = 1
    factor, info = systems.mT, torch.empty(len(systems), dtype=torch.int32, device=systems.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))  # in place, which LAPACK can by columns only
    if info.any():
        return None
    half = torch.linalg.solve_triangular(factor, right[:, :, None], upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, :size, 0]
