"""Gradual ADMM (Boža, arXiv 2401.02938): the mask is re-chosen from |V + U| while ADMM runs, then frozen.

When to use: better than any fixed mask followed by the same update, at the same price; the default recipe.

Differs from the authors' released code, which computes the cubic ramp in its per-matrix branch but does not use it:
`schedule="ramp"` follows the paper, `schedule="jump"` the released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramprune.errors import GrampruneError, suggest
from gramprune.pruning.gram import Gram
from gramprune.pruning.sparsity import Pattern, smallest
from gramprune.pruning.updates.admm import DAMPING, ITERATIONS, RHO, iterate

SCHEDULES = ("ramp", "jump")
RAMP = 15  # iterations in which the mask is re-chosen; the rest refine the weights under the last one


def prune(
    weight: Tensor,  # (out, in)
    gram: Gram,
    pattern: Pattern,
    iterations: int = ITERATIONS,
    ramp: int = RAMP,
    schedule: str = "ramp",  # "ramp": cubic, as in the paper; "jump": at the final sparsity from the start
    damping: float = DAMPING,
    rho: float = RHO,
) -> tuple[Tensor, Tensor, dict]:
    """Mask, weights and statistics after `iterations` steps, the mask chosen anew in the first `ramp`."""
    if not 1 <= ramp <= iterations:
        raise GrampruneError(f"{gram.name}: admm's ramp is {ramp}; expected 1 to {iterations}, its iterations.")
    if schedule not in SCHEDULES:
        raise GrampruneError(f"{gram.name}: there is no schedule {schedule!r} of admm; {suggest(schedule, SCHEDULES)}")
    mask = torch.empty(0, dtype=torch.bool)  # until the first step

    def choose(step: int, proposal: Tensor) -> Tensor:
        nonlocal mask
        if step < ramp:
            progress = 1.0 if schedule == "jump" else 1 - (1 - (step + 1) / ramp) ** 3
            mask = gradual_mask(proposal.abs(), pattern, progress)
        return mask

    new, mask, stats = iterate(weight, gram, choose, iterations, damping, rho)
    return mask, new, stats


def gradual_mask(
    scores: Tensor,  # (out, in), overwritten
    pattern: Pattern,
    progress: float,  # share of the final sparsity that is asked for now, up to 1
) -> Tensor:
    """(out, in) bool. N:M: the N best of every group are safe; of the rest, the worst of the whole matrix go."""
    if progress >= 1:
        return pattern.mask(scores)
    if not pattern.group:
        return pattern.mask(scores, progress * pattern.sparsity)
    count = round(progress * pattern.sparsity * scores.numel())
    spared = scores.masked_fill_(pattern.mask(scores), float("inf"))
    return ~smallest(spared.reshape(1, -1), count).reshape(scores.shape)
