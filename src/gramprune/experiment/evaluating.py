"""What evaluations need, and whether a model is whole in memory meanwhile or one block after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gramprune import machine
from gramprune.experiment import resources
from gramprune.experiment.needs import GIB, MIB, Need
from gramprune.experiment.resources import BYTES, EVALUATION_DATA, LM_EVAL, TOKENISING, TRANSFORMERS
from gramprune.experiment.settings import Settings

LOGITS = 100 * MIB  # a model's, in pieces; see `AT_ONCE` in model.logits
HELD = GIB  # hidden states between blocks that stay in memory; see there
ITEMS, ITEM_TOKENS = 2000, 512  # of a task: how many there are, and the longest, with four answers each


def perplexity(layout: dict[str, Any], settings: Settings) -> Need:
    """Perplexity of one checkpoint on one dataset."""
    measure = settings.evaluation.perplexity
    device, windows = resources.on(settings), measure.windows or 150
    size, batch = resources.width(layout, settings, device), machine.batch(settings.batch_size, measure.length, device)
    need = _evaluation(layout, settings, size, batch, measure.length, windows)
    return replace(need, base=need.base + TOKENISING)


def tasks(layout: dict[str, Any], settings: Settings, name: str) -> Need:
    """Accuracy of one checkpoint on the tasks of one entry, whose items are not known yet."""
    chosen = settings.tasks[name]
    device, items = resources.on(settings), chosen.limit or ITEMS
    size = resources.width(layout, settings, device, chosen.dtype)
    batch = machine.batch(chosen.batch_size or settings.batch_size, machine.ITEM, device)
    length = min(ITEM_TOKENS, layout["context"] or ITEM_TOKENS)
    need = _evaluation(layout, settings, size, batch, length, items * len(chosen.tasks), name)
    return replace(need, base=need.base + LM_EVAL, start=12.0)


def is_streamed(layout: dict[str, Any], settings: Settings, name: str | None = None) -> bool:
    """Whether one block at a time is in memory for perplexity, or an entry of tasks: `auto` is decided here."""
    need = perplexity(layout, settings) if name is None else tasks(layout, settings, name)
    return not need.divisible


def _evaluation(
    layout: dict[str, Any],
    settings: Settings,
    size: int,  # bytes of an element in a forward pass
    batch: int,  # sequences
    length: int,
    windows: int,  # sequences in all
    name: str | None = None,  # of an entry of tasks
) -> Need:
    """A model that sees so many windows of text, whole or streamed."""
    parameters = resources.model_bytes(layout) / BYTES[layout["dtype"]]
    passes = size * min(batch, windows) * length * 10 * layout["width"] + LOGITS
    whole = Need(
        TRANSFORMERS + EVALUATION_DATA,
        tensors=size * parameters + passes,
        staging=size * parameters,
        read=BYTES[layout["dtype"]] * parameters,
        half=2.0 * parameters * windows * length,
        accelerated=True,
        divisible=True,
        start=6.0,
    )
    chosen = settings.memory_of(name)
    if chosen == "whole" or (chosen == "auto" and resources.fits(whole, settings)):
        return whole
    largest = max(block["parameters"] for block in layout["blocks"])
    loaded = size * (layout["outside"] + max(largest, layout["head"]))
    hidden = float(size * windows * length * layout["flow"])
    aside = hidden if hidden > HELD else 0.0
    return replace(
        whole,
        tensors=loaded + passes + (0.0 if aside else hidden),
        staging=loaded,
        aside=aside,
        read=whole.read + 2 * aside * len(layout["blocks"]),
        divisible=False,
    )
