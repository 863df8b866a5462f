"""Perplexity over windows of a text: exp of the mean loss per predicted token.

The documents of a dataset are joined, tokenised once and cut; a remainder shorter than a window is dropped. In each
window the first token is only context; where windows overlap, so is all that the window before had. Losses are summed
in float64. Figures with different windows, tokenizers or data cannot be compared: all three are recorded beside the
number, and the loss of every window, so that two models can be compared window by window.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.progress import progress


def windows(
    tokens: list[int],
    length: int,  # tokens per window
    stride: int,  # tokens from one window's begin to the next's
    limit: int | None,  # at most so many windows; None for all
    dataset: str,  # name, for the error
) -> Tensor:
    """(windows, length) int64. Raises GrampruneError if there is not even one window, or fewer than the limit."""
    count = max(0, (len(tokens) - length) // stride + 1)
    if count < (limit or 1):
        raise GrampruneError(
            f"the dataset {dataset} has {len(tokens):,} tokens, {count} windows of {length}, but "
            f"{limit or 1} are asked for: lower evaluation.perplexity.length or windows, or give more text."
        )
    return torch.tensor(tokens, dtype=torch.int64).unfold(0, length, stride)[: limit or count].contiguous()


@torch.no_grad()
def perplexity(
    model: torch.nn.Module,  # a causal language model of transformers
    tokens: Tensor,  # (windows, length) int64
    stride: int,  # tokens from one window's begin to the next's
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """`perplexity`, `loss` (nats per token), how many tokens were predicted, and both per window.

    Raises GrampruneError if a loss is not finite.
    """
    losses: list[float] = []
    length = tokens.shape[1]
    scored = [length - 1] + [min(stride, length - 1)] * (len(tokens) - 1)  # all that the window before did not have
    batches = range(0, len(tokens), batch_size)
    for start in progress(batches, "perplexity", batch_size * length, "tokens"):
        batch = tokens[start : start + batch_size].to(device)
        logits = model(input_ids=batch, use_cache=False).logits
        for window, scores in zip(batch, logits, strict=True):  # one by one: float32 logits are the largest tensor
            new = scored[len(losses)]
            loss = torch.nn.functional.cross_entropy(scores[-new - 1 : -1].float(), window[-new:], reduction="none")
            losses.append(float(loss.double().sum()))
    predicted = sum(scored)
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
        "length": length,
        "stride": stride,
        "tokens_per_window": scored,
        "loss_per_window": [loss / count for loss, count in zip(losses, scored, strict=True)],
    }
