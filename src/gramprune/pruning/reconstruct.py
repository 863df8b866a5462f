"""Reconstruction: the kept weights of a block are trained by gradient until it gives what the dense block gives.

A mask and an update see one matrix at a time; what they leave is where matrices work together, through norms,
attention and activation functions. A region with one nonlinearity gains most of what there is to gain (Free Lunch,
arXiv 2510.14444; EBFT, arXiv 2402.12419). Only gradients of kept weights count, so zeros stay zeros at every step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gramprune.errors import GrampruneError

log = logging.getLogger(__name__)
BETAS = (0.9, 0.95)
WARM_UP = 0.1  # of all steps, in which the learning rate rises
RELATIVE = 0.02
"""The learning rate `auto`, in units of a matrix' root mean square over kept weights.

Adam's steps have the size of the rate whatever the gradients are, so the best rate grows with the weights: measured,
3e-3 where they are 0.12, 1e-3 where they are 0.04. With this share both get theirs.
"""

Outputs = Callable[[Sequence[int]], list[Tensor]]
"""From numbers of sequences to what regions give for them, (sequences, length, …) each."""


def train_kept(
    outputs: Outputs,  # of the pruned block, through which gradients flow
    aims: Outputs,  # what they are to be like
    parameters: Sequence[Tensor],  # trained in place, float32 or float64
    masks: Sequence[Tensor | None],  # of each parameter, in its shape, True = kept; None: all of it is trained
    samples: int,  # sequences that there are
    epochs: int = 5,
    learning_rate: float | str = "auto",  # at its highest; "auto" is `RELATIVE` of each matrix' kept weights
    batch_size: int = 8,  # sequences per step
    held_out: float = 0.1,  # share of the sequences
    at_once: int | None = None,  # sequences per forward pass; only rounding depends on it
    seed: int = 0,  # of the order of sequences
    where: str = "reconstruction",  # for messages
    done: Callable[[int], None] = lambda sequences: None,  # is told after every step how many more it was of
) -> dict[str, Any]:
    """Train by Adam, and keep what was best on the sequences that are held out, the weights at the start included.

    The learning rate rises over the first tenth of the steps and then falls to 0. Returns `losses`: of the sequences
    that are held out, before and after every epoch; and `best`, the epoch that was kept, 0 for the start. A loss is
    the squared error of a token's output relative to what is aimed at, as mean over tokens, sum over regions.
    Raises GrampruneError for a loss that is not finite at the start.
    """
    at_once = min(at_once or batch_size, batch_size)
    held = spread(samples, held_out)
    trained = [number for number in range(samples) if number not in set(held)]
    epochs = epochs if parameters else 0  # where nothing of a block is pruned
    steps = epochs * math.ceil(len(trained) / batch_size)
    rising = max(1, round(WARM_UP * steps))
    rates = _rates(parameters, masks, learning_rate)
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(parameters, rates, strict=True)]
    optimizer = torch.optim.Adam(groups or [torch.zeros(())], betas=BETAS)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    shuffled = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def measured() -> float:
        parts = [held[start : start + at_once] for start in range(0, len(held), at_once)]
        return sum(float(loss(outputs(part), aims(part))) * len(part) for part in parts) / len(held)

    losses, best = [measured()], 0
    if not math.isfinite(losses[0]):
        raise GrampruneError(f"{where}: the pruned block gives NaN or infinite values; raise the update's damping.")
    kept = [parameter.detach().clone() for parameter in parameters]
    for epoch in range(1, epochs + 1):
        order = [trained[place] for place in torch.randperm(len(trained), generator=shuffled).tolist()]
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            optimizer.zero_grad()
            for first in range(0, len(batch), at_once):
                part = batch[first : first + at_once]
                (loss(outputs(part), aims(part)) * (len(part) / len(batch))).backward()
            for parameter, mask in zip(parameters, masks, strict=True):
                if mask is not None and parameter.grad is not None:
                    parameter.grad.mul_(mask)
            optimizer.step()
            rate.step()
            done(len(batch))
        losses.append(measured())
        if losses[-1] < losses[best]:  # never where it is not a number
            best = epoch
            for place, parameter in zip(kept, parameters, strict=True):
                place.copy_(parameter.detach())
    with torch.no_grad():
        for place, parameter in zip(kept, parameters, strict=True):
            parameter.copy_(place)
    return {"losses": losses, "best": best}


def _rates(parameters: Sequence[Tensor], masks: Sequence[Tensor | None], learning_rate: float | str) -> list[float]:
    """The learning rate of every parameter; `auto` gives those without a mask the lowest that a matrix has."""
    if learning_rate != "auto":
        return [float(learning_rate)] * len(parameters)
    sizes = [
        0.0 if mask is None else float(parameter.detach().norm(dtype=torch.float64)) / max(1, int(mask.sum())) ** 0.5
        for parameter, mask in zip(parameters, masks, strict=True)
    ]
    lowest = min((size for size in sizes if size), default=1.0)
    return [RELATIVE * (size or lowest) for size in sizes]


def loss(outputs: Sequence[Tensor], aims: Sequence[Tensor]) -> Tensor:
    """Mean over tokens of a token's squared error relative to the square of what is aimed at, summed over regions.

    Relative, since some tokens' hidden states are a hundred times as large as others' and later norms undo that.
    """
    total = outputs[0].new_zeros(())
    for given, wanted in zip(outputs, aims, strict=True):
        given, wanted = given.flatten(2), wanted.flatten(2).to(given.dtype)
        scale = wanted.square().sum(dim=-1)
        total = total + ((given - wanted).square().sum(dim=-1) / scale.clamp_min(torch.finfo(scale.dtype).tiny)).mean()
    return total


def spread(samples: int, share: float) -> list[int]:
    """Numbers of the sequences that are held out: one at least, and not all, evenly over all of them."""
    count = min(max(1, round(share * samples)), samples - 1)
    return [place * samples // count for place in range(count)]
