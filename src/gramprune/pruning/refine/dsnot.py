"""DSnoT, dynamic sparse no training: grow and prune by a row's expected output error (Zhang et al., arXiv 2310.08915).

When to use: a cheap refinement of Wanda's masks at high sparsities, known from the literature. It corrects the *mean*
of a row's output, so it does nothing for inputs of mean zero, and it may raise the layer error; sparseswaps does not.

For a row with ε = Σ over pruned j of w_j E[x_j]: grow the pruned p with the largest sign(ε) w_p E[x_p] / Var[x_p],
prune the kept u with the smallest |w_u| ‖x_u‖ among those with sign(ε) w_u E[x_u] < 0, until |ε| is below a threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.gram import Gram, layer_error
from gramprune.pruning.sparsity import Pattern

CYCLES, THRESHOLD = 50, 0.1  # the authors' released code
INFINITY = float("inf")


def refine(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    pattern: Pattern,
    cycles: int = CYCLES,  # exchanges per row, at most
    threshold: float = THRESHOLD,  # of |ε|, in the units of the outputs
) -> tuple[Tensor, dict]:
    """The mask after the exchanges, and statistics: `swaps` (out,) int64, `error_before` and `error_after`.

    Raises GrampruneError if the Gram matrix comes without the inputs' sums and number of tokens.
    """
    if gram.sums is None or not gram.tokens:
        raise GrampruneError(
            f"{gram.name}: dsnot needs the inputs' means: make the Gram matrix with Gram(matrix, sums=..., tokens=...)."
        )
    if cycles < 1 or threshold < 0:
        raise GrampruneError(
            f"{gram.name}: dsnot needs cycles of 1 or more and threshold of 0 or more; found {cycles} and {threshold}."
        )
    kept, columns = mask.clone(), mask.shape[1]
    mean = (gram.sums / gram.tokens).to(weight)
    variance = (gram.matrix.diagonal() / gram.tokens - mean.square()).clamp(min=torch.finfo(weight.dtype).tiny)
    effect, wanda = weight * mean, weight.abs() * gram.norms
    error = effect.masked_fill(kept, 0).sum(dim=1, keepdim=True)
    swaps = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    size = pattern.group or columns
    for _ in range(cycles):
        signed = effect * error.sign()
        removal = wanda.masked_fill(~kept | (signed >= 0), INFINITY).view(len(mask), -1, size)
        least, u = removal.min(dim=2)  # of every group; without groups the row is one
        addition = (signed / variance).masked_fill_(kept | (signed <= 0), -INFINITY)
        addition = addition.view(removal.shape).masked_fill_(least[:, :, None] == INFINITY, -INFINITY).flatten(1)
        best, p = addition.max(dim=1, keepdim=True)
        going = (best > -INFINITY) & (error.abs() > threshold)
        if not going.any():
            break
        group = p // size
        u = group * size + u.gather(1, group)
        rows = going[:, 0].nonzero()[:, 0]
        error = (error - effect.gather(1, p) + effect.gather(1, u)).where(going, error)
        kept[rows, u[rows, 0]], kept[rows, p[rows, 0]] = False, True
        swaps[rows] += 1
    before, after = (layer_error(weight, weight.where(which, 0), gram) for which in (mask, kept))
    return kept, {"swaps": swaps, "error_before": before, "error_after": after}
