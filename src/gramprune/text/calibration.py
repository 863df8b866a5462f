"""Calibration sequences: windows of real text, all of one length, chosen by a seed (design of Wanda and SparseGPT).

Documents are visited in random order; each gives one window at a random place, so that as many documents as possible
are seen. When every document has been used, further windows that do not overlap are taken from the long ones.

Where that gives too few, because documents are shorter than a window as stories and chats are, they are packed: joined
in the same random order, with an end behind each, and cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gramprune.errors import GrampruneError


class Sample(NamedTuple):
    """Sequences, and how they were made."""

    sequences: list[list[int]]
    packed: bool
    documents: int  # that they were cut out of


def sequences(
    documents: Sequence[Any],
    encode: Callable[[Any], list[int]],  # document -> token ids
    samples: int,
    length: int,  # tokens, with those in front
    seed: int | str,
    dataset: str,  # name, for the error
    pack: str = "never",  # "auto": when there are too few windows; "always"
    front: Sequence[int] = (),  # what every sequence begins with
    end: Sequence[int] = (),  # what is put behind documents where they are packed
) -> Sample:
    """`samples` sequences of `length` tokens. Raises GrampruneError, with counts, if the text is too short.

    Same documents and seed, same sequences. Documents are encoded when they are needed, some of them twice.
    """
    size = length - len(front)
    if size < 1:
        raise GrampruneError(f"calibration.length is {length}: there is no room for text behind the tokens {front}.")
    generator = random.Random(seed)
    order = generator.sample(range(len(documents)), len(documents))
    windows: list[list[int]] = []
    used, there = 0, 0
    if pack != "always":
        windows, used, there = _cut(documents, encode, samples, size, order, generator)
    packed = len(windows) < samples and pack != "never"
    if packed:
        windows, used, there = _packed(documents, encode, samples, size, order, list(end))
    if len(windows) < samples:
        even = ", even when they are packed" if packed else ""
        remedy = "" if packed else ", or set calibration.pack to auto, which joins short documents"
        raise GrampruneError(
            f"the dataset {dataset} has {len(documents):,} documents with {there:,} windows of {length} tokens{even}, "
            f"but calibration.samples asks for {samples}: give more or longer text, or lower samples or length{remedy}."
        )
    return Sample([[*front, *window] for window in windows], packed, used)


Windows = tuple[list[list[int]], int, int]
"""As many as are asked for, or fewer; how many documents they are of; how many there are in what was looked at."""


def _cut(
    documents: Sequence[Any],
    encode: Callable[[Any], list[int]],
    samples: int,
    size: int,
    order: list[int],
    generator: random.Random,
) -> Windows:
    """Windows of one document each; one of every document before any gives two."""
    windows: list[list[int]] = []
    further: list[tuple[int, int]] = []  # document and place
    for index in order:
        tokens = encode(documents[index])
        starts = _starts(len(tokens), size, generator)
        windows += [tokens[start : start + size] for start in starts[:1]]
        further += [(index, start) for start in starts[1:]]
        if len(windows) == samples:
            return windows, samples, samples + len(further)
    used, there = len(windows), len(windows) + len(further)
    if there < samples:
        return [], used, there
    chosen = generator.sample(further, samples - len(windows))
    found: dict[tuple[int, int], list[int]] = {}
    for index in {index for index, _ in chosen}:
        tokens = encode(documents[index])  # again: all of all documents would not fit into memory
        found |= {(i, start): tokens[start : start + size] for i, start in chosen if i == index}
    return windows + [found[place] for place in chosen], used, there


def _starts(tokens: int, size: int, generator: random.Random) -> list[int]:
    """Where the windows of a document begin: from a random place on, side by side, in random order."""
    if tokens < size:
        return []
    starts = list(range(generator.randrange(tokens % size + 1), tokens - size + 1, size))
    generator.shuffle(starts)
    return starts


def _packed(
    documents: Sequence[Any],
    encode: Callable[[Any], list[int]],
    samples: int,
    size: int,
    order: list[int],
    end: list[int],
) -> Windows:
    """Windows of all documents in that order, one behind the other."""
    windows: list[list[int]] = []
    rest: list[int] = []
    used = 0
    for used, index in enumerate(order, start=1):  # noqa: B007
        tokens = encode(documents[index])
        if tokens:
            rest += tokens if tokens[-len(end) :] == end else [*tokens, *end]
        whole = min(len(rest) // size, samples - len(windows))
        windows += [rest[at : at + size] for at in range(0, whole * size, size)]
        rest = rest[whole * size :]
        if len(windows) == samples:
            break
    return windows, used, len(windows)
