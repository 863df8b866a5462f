"""Which linears hurt most: of one run, by the relative error that each is left with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from html import escape
from typing import Any

from gramprune.report.drawing import best_runs
from gramprune.report.read import Results


@dataclass(frozen=True)
class Hurt:
    """The errors of a run's linears, the largest first."""

    worst: list[dict[str, Any]]
    half: int  # how many of the first make up half of the sum of all
    block: int  # the one with the largest mean
    block_error: float
    mean: float


def hurt(errors: list[dict[str, Any]]) -> Hurt | None:
    """What hurts most in a run; none if no linear has an error. errors: as `Results.errors_of` gives them."""
    worst = sorted((row for row in errors if row.get("end")), key=lambda row: -row["end"])
    if not worst:
        return None
    total, sofar, half = sum(row["end"] for row in worst), 0.0, 0
    while sofar < total / 2:
        sofar += worst[half]["end"]
        half += 1
    blocks: dict[int, list[float]] = defaultdict(list)
    for row in worst:
        blocks[row["block"]].append(row["end"])
    means = {block: sum(found) / len(found) for block, found in blocks.items()}
    block = max(means, key=means.__getitem__)
    return Hurt(worst, half, block, means[block], total / len(worst))


def sentences(results: list[Results]) -> list[str]:
    """For the best run of every model and pattern: the linear and the block that hurt most, and how even errors are."""
    said, several = [], len({model for one in results for model in one.layouts}) > 1
    patterns = {(id(one), r["model"], r["run"]): r["pattern"] for one in results for r in one.rows}
    for one, model, run in best_runs(results):
        found = hurt(one.errors_of(model, run))
        if found is None:
            continue
        first, pattern = found.worst[0], patterns[id(one), model, run.name]
        where = f"{model}, {pattern}" if several else pattern
        text = (
            f"block {first['block']} {first['linear']} is hurt most, with a relative error of "
            f"{_percent(first['end'])} (mean of all linears: {_percent(found.mean)}); {found.half} of "
            f"{len(found.worst)} linears make up half of the sum"
        )
        if len({row["block"] for row in found.worst}) > 1:
            text += f"; block {found.block} has the largest mean of a block, {_percent(found.block_error)}"
        said.append(f"<b>{escape(where)}</b>, <code>{escape(run.name)}</code>: {escape(text)}.")
    return said


def _percent(share: float) -> str:
    if share >= 10:
        return f"{share:.3g} times"
    return f"{100 * share:.{2 if share < 0.995 else 3}g}\u00a0%"  # the space: no line ends there
