"""Experts that saw too few tokens for a Gram matrix of their own, and what they are pruned by instead."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

from gramprune.model.products import name_of

log = logging.getLogger(__name__)

LAYER, MAGNITUDE = "layer", "magnitude"


def fall_back(
    linears: dict[str, dict[str, Any]],  # descriptions; those of starved experts get another `gram` and a `fallback`
    width: int,  # of hidden states
    min_tokens: int | None,  # by default a quarter of an expert's inputs
    where: str,
) -> dict[str, list[str]]:
    """Give every expert with fewer than `min_tokens` tokens a Gram matrix that stands for its own.

    Where its inputs are hidden states, that is `layer`: the sum of all experts', its own too. Inputs that an expert
    makes itself mean something else in every expert; there it is `magnitude`: the identity, under which all inputs
    are alike and none makes up for another. The log says how many experts have which.
    Returns the Gram matrices by their names, and those that each is the sum of; none for the identity.
    """
    stand_ins: dict[str, list[str]] = {}
    experts: dict[str, list[str]] = defaultdict(list)
    for name, linear in linears.items():
        if linear["part"] is not None:
            experts[name_of(linear["parameter"])].append(name)
    for base, names in experts.items():
        columns = linears[names[0]]["shape"][1]
        least = columns // 4 if min_tokens is None else min_tokens
        starved = [name for name in names if linears[name]["tokens"] < max(least, 1)]
        if not starved:
            continue
        seen = {linears[name]["gram"] for name in names} - {None}
        kind = LAYER if columns == width and seen else MAGNITUDE
        stand_ins[base] = sorted(seen) if kind == LAYER else []
        for name in starved:
            linears[name] |= {"gram": base, "fallback": kind}
        log.warning(
            "%s: %d of %d experts of %s saw fewer than %d tokens; they are pruned by %s; give more calibration text",
            where,
            len(starved),
            len(names),
            base,
            least,
            "the Gram matrix of all experts' inputs" if kind == LAYER else "magnitude",
        )
    return stand_ins
