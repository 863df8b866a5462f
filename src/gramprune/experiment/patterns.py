"""Sparsity by linear: a mapping in the place of a run's sparsity, and what each linear of each block gets of it.

    sparsity: {default: 0.6, "*.down_proj": 0.5, "block 0": dense, "block 1-3 self_attn.*": "2:4"}

A key is `default`, a linear's name or a pattern of names, a block or several (`block 0`, `block 4-7`, `block -1` for
the last), or both. Of the keys that fit a linear the nearest holds: a block with linears before a block, a block before
linears, one block before several, a name before a pattern. The order in which they are written says nothing, as always
in YAML; two that are equally near must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from itertools import groupby
from typing import Any

from gramprune.errors import suggest
from gramprune.pruning.sparsity import Pattern

Value = float | str
"""Of a linear: a fraction, N:M as text, or DENSE."""

DENSE, DEFAULT = "dense", "default"
_BLOCKS = re.compile(r"block (?:(-\d+)|(\d+)(?:-(\d+))?)(?: (\S+))?")


def check(sparsity: dict[Any, Any]) -> None:
    """Raises ValueError for keys that say nothing, and for a mapping by which nothing is pruned."""
    for key in sparsity:
        where = _BLOCKS.fullmatch(key)
        if key.startswith("block ") and not where:
            raise ValueError(
                f"{key!r} names no block; expected `block 0`, `block 4-7` or `block -1`, and a pattern of linears "
                "behind it if you like, such as `block 0 *.down_proj`"
            )
        if where and where[3] and int(where[3]) < int(where[2]):
            raise ValueError(f"{key!r} ends before it begins; write the smaller number first")
    if DEFAULT not in sparsity:
        raise ValueError(
            "there is no `default`; say what linears get that no other key fits: a fraction, N:M, or `default: dense`"
        )
    if all(value == DENSE for value in sparsity.values()):
        raise ValueError(
            "every linear stays dense; give one a fraction or N:M, or leave the run out: dense is always there"
        )


def values(sparsity: Any) -> list[Any]:
    """What linears get, where they are pruned: one value, or those of a mapping."""
    return [value for value in (sparsity.values() if isinstance(sparsity, dict) else [sparsity]) if value != DENSE]


def grouped(sparsity: Any) -> bool:
    """Whether all that is pruned is N:M, so that a granularity has nothing to say."""
    return all(":" in str(value) for value in values(sparsity))


def pattern(value: Value, granularity: str) -> Pattern | None:
    """A linear's pattern; none if it stays dense. granularity: of fractions; N:M has its own."""
    return None if value == DENSE else Pattern.parse(value, "row" if ":" in str(value) else granularity)


def at_block(sparsity: dict[str, Value], block: int, blocks: int, linears: Iterable[str]) -> Value | dict[str, Value]:
    """What one of so many blocks gets: by linear, or one value where that is the same for all."""
    found = by_linear(sparsity, block, blocks, linears)
    return next(iter(found.values())) if len(set(found.values())) == 1 else found or DENSE


def by_linear(sparsity: dict[str, Value], block: int, blocks: int, linears: Iterable[str]) -> dict[str, Value]:
    """What every linear of one of so many blocks gets."""
    return {name: sparsity[_nearest(sparsity, block, blocks, name)[0]] for name in linears}


def _nearest(sparsity: dict[str, Value], block: int, blocks: int, linear: str) -> list[str]:
    """The keys that fit a linear and are nearest to it: one, or several that are equally near."""
    ranks = {key: _rank(key) for key in sparsity if _fits(key, block, blocks, linear)}
    return [key for key, rank in ranks.items() if rank == max(ranks.values())]


def _rank(key: str) -> tuple[int, int, bool]:
    """How near a key is to a linear that it fits; the larger, the nearer."""
    if key == DEFAULT:
        return 0, 0, False
    if not (where := _BLOCKS.fullmatch(key)):
        return 1, 0, not set("*?[") & set(key)
    _, first, end, name = where.groups()
    return 3 if name else 2, int(first or 0) - int(end or first or 0), not set("*?[") & set(name or "*")


def _fits(key: str, block: int, blocks: int, linear: str) -> bool:
    if key == DEFAULT:
        return True
    if not (where := _BLOCKS.fullmatch(key)):
        return fnmatch(linear, key)
    last, first, end, name = where.groups()
    begin = blocks + int(last) if last else int(first)
    return begin <= block <= int(end or begin) and fnmatch(linear, name or "*")


def unsettled(sparsity: dict[str, Value], linears: list[list[str]]) -> str:
    """What is wrong with a mapping for a model, given the linears of its blocks; nothing if each gets one value."""
    used = set()
    for block, names in enumerate(linears):
        for name in names:
            used |= {key for key in sparsity if _fits(key, block, len(linears), name)}
            first, *others = _nearest(sparsity, block, len(linears), name)
            if differs := [key for key in others if sparsity[key] != sparsity[first]]:
                return (
                    f"{first!r} gives block {block}, {name} {said(sparsity[first])} and {differs[0]!r} gives it "
                    f"{said(sparsity[differs[0]])}; add a key that is nearer, such as 'block {block} {name}'."
                )
    for key in sparsity:
        if key not in used and key != DEFAULT:
            known = dict.fromkeys(name for names in linears for name in names)
            blocks = f"there are blocks 0 to {len(linears) - 1}, with {', '.join(known)}."
            return f"{key!r} fits no linear; {blocks if _BLOCKS.fullmatch(key) else suggest(key, list(known))}"
    return ""


def label(sparsity: Any) -> str:
    """A sparsity in a few words, for tables: `0.6; *.down_proj 0.5; block 0 dense`."""
    if not isinstance(sparsity, dict):
        return said(sparsity)
    others = [f"{key} {said(sparsity[key])}" for key in sorted(sparsity, key=_order) if key != DEFAULT]
    first = said(sparsity.get(DEFAULT))
    whole = "; ".join([first, *others])
    return whole if len(whole) <= 60 else f"{first}; {len(others)} exceptions"


def _order(key: Any) -> tuple[int, list[Any]]:
    """Linears, blocks and both, each by their numbers and names."""
    parts = re.split(r"(\d+)", str(key))
    return _rank(str(key))[0], [int(part) if part.isdigit() else part for part in parts]


def said(value: Any) -> str:
    """A linear's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def described(blocks: list[Value | dict[str, Value]], linears: list[list[str]]) -> list[str]:
    """A line for blocks that follow each other and get the same: `blocks 1-5: 0.6; mlp.down_proj 0.5`."""
    lines, number = [], 0
    for (value, names), alike in groupby(zip(blocks, map(tuple, linears), strict=True)):
        last = number + len(list(alike)) - 1
        head = f"block {number}" if last == number else f"blocks {number}-{last}"
        given = value if isinstance(value, dict) else dict.fromkeys(names, value)
        lots = {said(each): [name for name in names if given[name] == each] for each in dict.fromkeys(given.values())}
        usual = max(lots, key=lambda each: len(lots[each]), default=DENSE)
        others = [f"{', '.join(lots[each])} {each}" for each in lots if each != usual]
        lines.append("; ".join([f"{head}: {usual}", *others]))
        number = last + 1
    return lines
