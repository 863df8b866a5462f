"""Perplexity over windows that do not overlap: exp of the mean loss per predicted token.

The documents of a dataset are joined, tokenised once and cut; a remainder shorter than a window is dropped. In each
window the first token is only context. Losses are summed in float64. Figures with different windows, tokenizers or
data cannot be compared: all three are recorded beside the number.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch
from torch import Tensor

from gramprune.errors import GrampruneError

log = logging.getLogger(__name__)


def windows(
    tokens: list[int],
    length: int,  # tokens per window
    limit: int | None,  # at most so many windows; None for all
    dataset: str,  # name, for the error
) -> Tensor:
    """(windows, length) int64. Raises GrampruneError if there is not even one window, or fewer than the limit."""
    count = len(tokens) // length
    if count < (limit or 1):
        raise GrampruneError(
            f"the dataset {dataset} has {len(tokens):,} tokens, {count} windows of {length}, but "
            f"{limit or 1} are asked for: lower evaluation.perplexity.length or windows, or give more text."
        )
    count = min(count, limit or count)
    return torch.tensor(tokens[: count * length], dtype=torch.int64).reshape(count, length)


@torch.no_grad()
def perplexity(
    model: torch.nn.Module,  # a causal language model of transformers
    tokens: Tensor,  # (windows, length) int64
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """`perplexity`, `loss` (nats per token), `loss_per_window`, and how many tokens were predicted.

    Raises GrampruneError if a loss is not finite.
    """
    losses = []
    started = last = time.monotonic()
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size].to(device)
        logits = model(input_ids=batch, use_cache=False).logits
        for window, scores in zip(batch, logits, strict=True):  # one by one: float32 logits are the largest tensor
            loss = torch.nn.functional.cross_entropy(scores[:-1].float(), window[1:], reduction="none")
            losses.append(float(loss.double().sum()))
        if time.monotonic() - last > 10:
            last = time.monotonic()
            left = (last - started) * (len(tokens) / len(losses) - 1)
            log.info("perplexity: %d of %d windows, %.0f s left", len(losses), len(tokens), left)
    predicted = len(tokens) * (tokens.shape[1] - 1)
    mean = math.fsum(losses) / predicted
    if not math.isfinite(mean):
        raise GrampruneError(
            "the loss is not finite: the activations overflow in this dtype; try `dtype: float32` or bfloat16."
        )
    return {
        "perplexity": math.exp(min(mean, 700.0)),
        "loss": mean,
        "predicted_tokens": predicted,
        "windows": len(tokens),
        "length": tokens.shape[1],
        "loss_per_window": [loss / (tokens.shape[1] - 1) for loss in losses],
    }
