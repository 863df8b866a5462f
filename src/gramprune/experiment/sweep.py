"""Sweeps: a list in the place of a run's value stands for a run per value, and several lists for all combinations.

    runs:
      - {recipe: [wanda, admm, best], sparsity: [0.5, 0.6, "2:4"]}

is nine runs. Combinations that cannot be, such as `update: joint` with a mask that makes no weights, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from itertools import product
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.experiment import patterns
from gramprune.experiment.names import slug
from gramprune.experiment.recipes import filled

MOST = 2000  # runs that one entry may stand for
SAYS_ITSELF = ("recipe", "mask", "refine", "update", "sparsity")
"""Keys that the name that a run gets by default is made of."""
LISTS = ("train",)
"""Options that are lists themselves; a list of lists stands for a run per list."""


def name_of(run: dict[str, Any]) -> str:
    """What a run without a name is called: its recipe, or mask, refinement and update, and its sparsity."""
    parts = [run.get("recipe")] if run.get("recipe") else [run.get(key) for key in ("mask", "refine", "update")]
    sparsity = patterns.label(run.get("sparsity")).replace("; ", "-").replace("*.", "")
    return slug("-".join(_texts([*parts, sparsity])))


def expanded(
    runs: list[Any],
    impossible: Callable[
        [dict[str, Any]], str
    ],  # why a combination cannot be; nothing if it can, or is wrong by itself
) -> tuple[list[Any], list[int]]:
    """All runs that the entries stand for, and for each the place of its entry.

    Raises GrampruneError for an entry of which no combination can be, and for one that stands for too many.
    """
    found: list[Any] = []
    places: list[int] = []
    for place, entry in enumerate(runs):
        reason = ""
        for run in _combinations(entry, f"config: runs[{place}]"):
            refused = impossible(filled(run)) if run is not entry else ""
            reason = reason or refused
            if not refused:
                found.append(run)
                places.append(place)
                if places.count(place) > MOST:
                    raise GrampruneError(f"config: runs[{place}]: the sweep makes more than {MOST:,} runs; split it.")
        if place not in places:
            raise GrampruneError(f"config: runs[{place}]: no combination can be: {reason.rstrip('.')}.")
    return found, places


def _combinations(entry: Any, where: str) -> Iterator[Any]:
    """Every run that an entry stands for; the entry itself, where it has no lists. A value may have lists in it."""
    swept = [*_lists(entry)] if isinstance(entry, dict) else []
    if not swept:
        yield entry
        return
    for path, values in swept:
        if not values:
            raise GrampruneError(f"{where}.{'.'.join(path)}: the list is empty.")
    for values in product(*(values for _, values in swept)):
        run = _put(entry, swept, values)
        # A mapping among the values may have lists in it; a list in a list is a mistake, which is said of the run.
        yield from [run] if any(isinstance(value, list) for value in values) else _combinations(run, where)


def excluded(runs: list[Any], patterns: Any) -> list[bool]:
    """Of every run, whether a pattern excludes it by its name. Raises GrampruneError for one that matches none."""
    names = [str(run.get("name") or name_of(run)) if isinstance(run, dict) else "" for run in runs]
    for place, pattern in enumerate(patterns if isinstance(patterns, list) else []):
        if not any(fnmatch(name, str(pattern)) for name in names):
            raise GrampruneError(
                f"config: exclude_runs[{place}]: {pattern!r} matches no run; there are {', '.join(names[:20])}."
            )
    return [any(fnmatch(name, str(pattern)) for pattern in patterns or []) for name in names]


def _lists(section: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Where in a run lists stand, in methods' options too, and their values."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _lists(value, (*above, key))
        elif isinstance(value, list) and key != "name" and not (key in LISTS and _flat(value)):
            yield (*above, key), value


def _flat(values: list[Any]) -> bool:
    return not any(isinstance(value, list) for value in values)


def _put(entry: dict[str, Any], swept: list[tuple[tuple[str, ...], list[Any]]], values: tuple) -> dict[str, Any]:
    """The entry with one value in each place, and a name that tells it from the others."""
    run: dict[str, Any] = {**entry}
    further = []
    for (path, _), value in zip(swept, values, strict=True):
        inside = run
        for key in path[:-1]:
            inside[key] = {**inside[key]}
            inside = inside[key]
        inside[path[-1]] = value
        said = path == path[:1] or path[0] == "sparsity"  # in the name already
        if "name" in entry or path[0] not in SAYS_ITSELF or not said:
            further += _further(path, value)
    if "name" in entry or further:
        run["name"] = "-".join([str(entry.get("name") or name_of(run)), *filter(None, map(slug, further))])
    return run


def _further(path: tuple[str, ...], value: Any) -> list[str]:
    """A value as a part of a name: with its key, where it would not be understood without."""
    plain = len(path) == 1 and (path[0] in SAYS_ITSELF or path[0] in ("granularity", "precision"))
    said = {"propagation": "on-", "target": "to-", "allocation": "by-"}.get(path[-1], path[-1])
    key = "" if plain or path[-1] == "method" else said
    return [key + text for text in _texts([value])]


def _texts(values: list[Any]) -> list[str]:
    """Methods and numbers as parts of a name; what is absent or none says nothing."""
    texts = [value.get("method") if isinstance(value, dict) else value for value in values]
    texts = ["-".join(map(str, text)) if isinstance(text, list) else text for text in texts]
    return [str(text).replace(":", "of") for text in texts if text not in (None, "none")]
