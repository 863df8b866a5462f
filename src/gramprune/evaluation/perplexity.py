"""Perplexity over windows of a text: exp of the mean loss per predicted token.

The documents of a dataset are joined, tokenised and cut; a remainder shorter than a window is dropped. What a model
wants in front of its texts (BOS) stands in front of every window, as context: it is no token of the text, and all of
the text's tokens behind it are predicted. Where nothing stands there, a window's first token is only context. Where
windows overlap, so is all that the window before had. Losses are summed in float64. Figures with different windows,
tokenizers or data cannot be compared: all three are recorded beside the number, and the loss of every window, so that
two models can be compared window by window.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.evaluation.asked import Logits, measured


def windows(
    tokens: Iterable[list[int]],  # of the text, some at a time; taken until there are enough
    length: int,  # tokens per window
    stride: int,  # tokens from one window's begin to the next's
    limit: int | None,  # at most so many windows; None for all
    dataset: str,  # name, for the error
) -> Tensor:
    """(windows, length) int32. Raises GrampruneError if there is not even one window, or fewer than the limit."""
    taken, enough = array("i"), length + ((limit or 0) - 1) * stride
    for some in tokens:
        taken.extend(some)
        if limit and len(taken) >= enough:
            break
    count = max(0, (len(taken) - length) // stride + 1)
    if count < (limit or 1):
        raise GrampruneError(
            f"the dataset {dataset} has {len(taken):,} tokens, {count} windows of {length}, but "
            f"{limit or 1} are asked for: lower evaluation.perplexity.length or windows, or give more text."
        )
    return torch.frombuffer(taken, dtype=torch.int32).unfold(0, length, stride)[: limit or count]


def behind(front: Sequence[int], windows: Tensor) -> Tensor:
    """Windows (n, length) of any integers with what stands before each: (n, front + length) int64."""
    before = torch.tensor([*front], dtype=torch.int64).expand(len(windows), -1)
    return torch.cat([before, windows.long()], dim=1)


def digest(windows: Tensor, front: Sequence[int]) -> str:
    """SHA-256 of the windows as models see them."""
    found = hashlib.sha256()
    for some in windows.split(1024):
        found.update(behind(front, some).numpy().data)
    return found.hexdigest()


@torch.no_grad()
def perplexity(
    logits: Logits,  # of a causal language model
    tokens: Tensor,  # (windows, length) of the text
    stride: int,  # tokens from one window's begin to the next's
    batch_size: int,
    front: Sequence[int] = (),  # what stands before every window
) -> dict[str, Any]:
    """`perplexity`, `loss` (nats per token), how many tokens were predicted, and both per window.

    Raises GrampruneError if a loss is not finite.
    """
    length = len(front) + tokens.shape[1]
    predicted = length - max(1, len(front))  # per window; of those that overlap, what the one before did not have
    scored = [predicted] + [min(stride, predicted)] * (len(tokens) - 1)
    batches = [behind(front, some) for some in tokens.split(batch_size)]
    counts = [scored[start : start + batch_size] for start in range(0, len(tokens), batch_size)]
    targets, asked = [], []
    for batch, news in zip(batches, counts, strict=True):
        targets.append(torch.cat([window[-new:] for window, new in zip(batch, news, strict=True)]))
        ends = [length * (row + 1) - 1 for row in range(len(news))]
        asked.append(torch.cat([torch.arange(end - new, end) for end, new in zip(ends, news, strict=True)]))
    losses: list[float] = []
    for found, news in zip(measured(logits, batches, asked, targets, _losses), counts, strict=True):
        losses += [float(some.double().sum()) for some in found.split(news)]
    mean = math.fsum(losses) / sum(scored)
    if not math.isfinite(mean):
        raise GrampruneError(
            "the loss is not finite: the activations overflow in this dtype; try `dtype: float32` or bfloat16."
        )
    return {
        "perplexity": math.exp(min(mean, 700.0)),
        "loss": mean,
        "predicted_tokens": sum(scored),
        "windows": len(tokens),
        "length": length,
        "stride": stride,
        "front": list(front),
        "tokens_per_window": scored,
        "loss_per_window": [loss / count for loss, count in zip(losses, scored, strict=True)],
    }


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats per token, in float32."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
