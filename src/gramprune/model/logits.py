"""Logits of the positions that are asked for, of a model that is whole in memory, or of one block after the other.

Both ways run the same code on the same batches: the decoder, then the model's own head on some positions at a time. So
both give the same figures, and a vocabulary of 262,144 tokens takes no more memory than a small one. Streamed, blocks
are outside and batches inside: each block is read once, however many batches there are, and what goes from block to
block is kept in memory, or in files where it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gramprune.errors import GrampruneError
from gramprune.model.blocks import Blocks, open_blocks
from gramprune.model.loading import missing, open_model, open_tokenizer
from gramprune.model.parts import decoder_of, given_by, through_head, trunk_of
from gramprune.progress import Progress
from gramprune.storage.shelf import Shelf

AT_ONCE = 2**23
"""Logits that are made at a time: 32 MiB in float32."""
HELD = 2**30
"""Bytes of hidden states that stay in memory; of more, all go through files."""

Logits = Callable[[Sequence[Tensor], Sequence[Tensor]], Iterator[Iterator[Tensor]]]
"""(batches, asked) -> of every batch its logits, piece by piece, each (some, vocabulary) on the device.

batches: tokens, (sequences, length) int64 each. asked: of every batch the positions whose logits are wanted, (wanted,)
int64, counted through all of its sequences; logits come in their order."""


class Opened(NamedTuple):
    """A checkpoint that is to be evaluated."""

    model: Any  # of transformers; where it is streamed, what has only its `config` and `device`
    logits: Logits
    tokenizer: Any
    dtype: str  # what "auto" was


def open_logits(
    folder: Path | str,
    dtype: str,
    device: str,
    streamed: bool,  # one block at a time in memory
    scratch: Path,  # beside it may be a folder while it is streamed
    what: str,  # for the progress
) -> Opened:
    """The logits of a checkpoint folder. Raises GrampruneError for a checkpoint that lacks a parameter."""
    if not streamed:
        whole, tokenizer, chosen = open_model(folder, dtype, device)
        return Opened(whole, whole_logits(whole, what), tokenizer, chosen)
    tokenizer = open_tokenizer(folder)
    blocks, keys = open_blocks(folder, dtype, device)
    if lost := keys.missing():
        raise GrampruneError(missing(Path(folder), lost))
    model = SimpleNamespace(config=blocks.whole.config, device=torch.device(device))
    chosen = str(blocks.dtype).removeprefix("torch.")
    return Opened(model, streamed_logits(blocks, scratch, what), tokenizer, chosen)


def whole_logits(whole: PreTrainedModel, what: str = "logits") -> Logits:
    """Of a model that is whole in memory, on one device or several. what: for the progress."""
    decoder, trunk = decoder_of(whole), trunk_of(whole)

    @torch.no_grad()
    def logits(batches: Sequence[Tensor], asked: Sequence[Tensor]) -> Iterator[Iterator[Tensor]]:
        count = Progress(what, sum(map(torch.numel, batches)), 1, "tokens")
        for tokens, places in zip(batches, asked, strict=True):
            made = given_by(trunk, partial(decoder, input_ids=tokens.to(whole.device), use_cache=False))
            yield _pieces(partial(through_head, whole, trunk), _chosen(made, places), _room(whole))
            count.step(tokens.numel())

    return logits


def streamed_logits(blocks: Blocks, scratch: Path, what: str = "logits") -> Logits:
    """Of a model of which one block at a time is in memory.

    scratch: beside it is the folder of hidden states that are too many for memory, until the end. what: for the
    progress.
    """

    @torch.no_grad()
    def logits(batches: Sequence[Tensor], asked: Sequence[Tensor]) -> Iterator[Iterator[Tensor]]:
        total = sum(map(torch.numel, batches))
        count = Progress(what, len(blocks) * total, 1, "tokens through a block")
        with Shelf(scratch) as shelf:
            for index in range(len(blocks)):
                with blocks.loaded(index):
                    for place, tokens in enumerate(batches):
                        entering = shelf.take(place) if index else None
                        if index == len(blocks) - 1:
                            flow = {"chosen": _chosen(blocks.last(tokens, entering), asked[place])}
                        else:
                            flow = blocks.forward(tokens, entering)[1]
                        size = sum(tensor.nbytes for tensor in flow.values()) / tokens.numel()
                        shelf.put(place, flow, in_memory=size * total <= HELD)
                        count.step(tokens.numel())
            with blocks.head() as head:
                for place in range(len(batches)):
                    yield _pieces(head, shelf.take(place)["chosen"].to(blocks.device), _room(blocks.whole))

    return logits


def _chosen(made: Tensor, places: Tensor) -> Tensor:
    """Hidden states (wanted, width) of (sequences, length, width)."""
    return made.flatten(0, 1)[places.to(made.device)]


def _room(whole: PreTrainedModel) -> int:
    """For how many positions logits are made at a time."""
    return max(1, AT_ONCE // whole.config.get_text_config().vocab_size)


@torch.no_grad()
def _pieces(head: Callable[[Tensor], Tensor], states: Tensor, room: int) -> Iterator[Tensor]:
    """Logits of hidden states (wanted, width), of so many positions at a time."""
    for some in states.split(room) if len(states) else ():
        yield head(some)
