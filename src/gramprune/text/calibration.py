"""Calibration sequences: windows of real text, all of one length, chosen by a seed (design of Wanda and SparseGPT).

Documents are visited in random order; each gives one window at a random place, so that as many documents as possible
are seen. When every document has been used, further windows that do not overlap are taken from the long ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gramprune.errors import GrampruneError


def sequences(
    documents: list[str],
    encode: Callable[[str], list[int]],  # text -> token ids, with whatever the tokenizer puts in front
    samples: int,
    length: int,  # tokens
    seed: int,
    dataset: str,  # name, for the error
) -> list[list[int]]:
    """`samples` sequences of `length` tokens. Raises GrampruneError, with counts, if the text is too short."""
    generator = random.Random(seed)
    order = generator.sample(range(len(documents)), len(documents))
    chosen: list[list[int]] = []
    further: list[list[int]] = []
    for index in order:
        tokens = encode(documents[index])
        windows = _windows(tokens, length, generator)
        chosen += windows[:1]
        further += windows[1:]
        if len(chosen) == samples:
            return chosen
    if len(chosen) + len(further) < samples:
        raise GrampruneError(
            f"the dataset {dataset} has {len(documents):,} documents with {len(chosen) + len(further):,} windows of "
            f"{length} tokens, but calibration.samples asks for {samples}: give more or longer text, or lower "
            "samples or length."
        )
    return chosen + generator.sample(further, samples - len(chosen))


def _windows(tokens: list[int], length: int, generator: random.Random) -> list[list[int]]:
    """Windows of `length` tokens that do not overlap, from a random start on, in random order."""
    if len(tokens) < length:
        return []
    start = generator.randrange(len(tokens) % length + 1)
    windows = [tokens[at : at + length] for at in range(start, len(tokens) - length + 1, length)]
    generator.shuffle(windows)
    return windows
