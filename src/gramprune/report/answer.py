"""The report's first page: which run to take, and the table of all of them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from html import escape, unescape
from typing import Any

from gramprune.progress import duration
from gramprune.report import results as tables
from gramprune.report.drawing import worth
from gramprune.report.read import Results
from gramprune.report.results import method

BROKEN = 10  # times the dense perplexity: such a model is no use to anyone
LONG = 30  # rows: of more of them a table scrolls in itself and can be narrowed down
TAKEN = 12  # sentences; further ones are folded
MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


def rows_of(results: list[Results]) -> list[dict[str, Any]]:
    """The rows of all summaries, with the folder that they are from where there are several."""
    several = len(results) > 1
    return [
        {**({"from": str(one.folder)} if several else {}), **row, "_of": one} for one in results for row in one.rows
    ]


def answer(results: list[Results]) -> str:
    """The table of runs: the dense models on top, figures first, the best of every pattern marked."""
    rows = sorted(rows_of(results), key=lambda row: row["run"] != "dense")
    figures = [name for name in tables.shown(rows) if name.startswith(tables.SHOWN)]
    several = {"from": len(results) > 1, "model": len({row["model"] for row in rows}) > 1}
    head = [*(name for name, shown in several.items() if shown), "run"]
    gpu = any(_cost(row).get("gpu") for row in rows)
    spent = {"hours": "jobs", "gpu" if gpu else "cpu": "GPU" if gpu else "CPU", "wall": "wall"}
    best, marks = best_of(rows, figures), marks_of(rows, figures)
    body = []
    for place, row in enumerate(rows):
        cells = [_cell(row[name]) for name in head]
        for name in figures:
            text = escape(tables.cell(name, row)) + marks.get((place, name), "") + _interval(name, row)
            cells.append(_cell(row.get(name), text, "n best" if (place, name) in best else "n"))
        cells.append(_cell(row["sparsity"], tables.cell("sparsity", row), "n"))
        counted = (
            f"{row['pattern']} per {row['granularity']}" if row["granularity"] in ("row", "matrix") else row["pattern"]
        )
        cells += [_cell(counted, kind="pattern"), _cell(method(row)), _cell(row["propagation"])]
        cost = _cost(row)
        cells += [_cell(cost.get(key), duration(3600 * cost[key]) if cost else "-", "n") for key in spent]
        known = {"model": row["model"], "pattern": row["pattern"] or ""}
        known["star"] = "star" if any((place, name) in best for name in figures) else ""
        marked = "".join(f" data-{key}='{escape(value, quote=True)}'" for key, value in known.items())
        body.append(f"<tr{' class=dense' if row['run'] == 'dense' else ''}{marked}>{''.join(cells)}</tr>")
    titles = [(name, False) for name in head] + [(_heading(name), True) for name in figures] + [("sparsity", True)]
    titles += [(name, False) for name in ("pattern", "method", "propagation")]
    titles += [(name, True) for name in spent.values()]
    boxes = " ".join(f"<label><input type=checkbox checked> {escape(title)}</label>" for title, _ in titles[1:])
    notes = "".join(f"<p>{note}</p>" for note in legend(rows, figures))
    return (
        f"<h2 id=answer>Runs</h2>{listed(takes(results))}<p>★: the best run of every model and pattern; where "
        "intervals overlap, that says little. Below a perplexity: how much higher than dense, with a 95 % interval "
        "(bootstrap over windows); with an accuracy, its standard error. Time is that of all jobs that a run needs, "
        "shared ones counted in full; wall: if every job had a machine at once. A click on a heading sorts.</p>"
        f"<details class=columns><summary>Columns</summary>{boxes}</details>"
        + _choices(rows)
        + table(titles, "".join(body))
        + notes
    )


def takes(results: list[Results]) -> list[str]:
    """For every model and pattern: which run to take, what it costs, and which cheaper one comes near."""
    rows = rows_of(results)
    names = [name for name in tables.shown(rows) if name.startswith("perplexity_")]
    several = len({row["model"] for row in rows}) > 1
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["run"] != "dense":
            groups[row["model"], row["pattern"], *(row.get(f"same_{name}") for name in names)].append(row)
    said = []
    for (model, pattern, *_), found in groups.items():
        winners: dict[str, list[str]] = defaultdict(list)  # the texts of every run that is the best on one
        for name in names:
            if measured := [row for row in found if row.get(name) is not None]:
                winners[_ranked(measured, name)[0]["run"]].append(name)
        own = [row for row in rows if row["run"] == "dense" and row["model"] == model]
        dense = {name: next((r.get(name) for r in own if _same(r, found[0], name)), None) for name in names}
        parts = [_taken([r for r in found if r.get(on[0]) is not None], on, dense) for on in winners.values()]
        if parts:
            where = f"{model}, {pattern}" if several else pattern
            said.append(f"<b>{escape(where)}</b>: {'; '.join(parts)}.")
    return said


def plain(sentence: str) -> str:
    """A sentence as the screen has it: without the page's tags."""
    return unescape(re.sub(r"<[^>]*>", "", sentence))


def _ranked(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Runs by one figure, of equal ones the cheapest first."""
    return sorted(found, key=lambda row: (worth(row, name), _cost(row).get("hours", math.inf)))


def _same(row: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    """Whether a figure of two rows can be compared."""
    return row.get(f"same_{name}") == other.get(f"same_{name}")


def _figure(row: dict[str, Any], name: str, dense: float | None) -> str:
    """A run's perplexity, beside the dense model's."""
    text = name.removeprefix("perplexity_").replace("_", " ")
    beside = f", dense {tables.cell(name, {name: dense})}" if dense is not None else ""
    return f"{tables.cell(name, row)} on {escape(text)}{beside}"


def _taken(found: list[dict[str, Any]], names: list[str], dense: dict[str, float | None]) -> str:
    """Which of some runs to take, by the first of its figures, and the cheaper one that comes nearest."""
    name = names[0]
    ranked = _ranked(found, name)
    best, least = ranked[0], dense.get(name)
    figures = " and ".join(_figure(best, each, dense.get(each)) for each in names)
    what = f"<code>{escape(best['run'])}</code>: perplexity {figures}"
    if not worth(best, name) < (math.inf if least is None else BROKEN * least):
        return f"no run keeps the model; {'the least bad, ' if len(ranked) > 1 else ''}{what}"
    sentence = f"take {what}" if len(ranked) > 1 else what
    if alike := [row["run"] for row in ranked[1:] if row[name] == best[name]]:
        sentence += f"; the same: {', '.join(f'<code>{escape(run)}</code>' for run in alike)}"
    hours = _cost(best).get("hours")
    cheaper = [r for r in ranked[1 + len(alike) :] if hours and _cost(r) and _cost(r)["hours"] < 0.7 * hours]
    if hours and cheaper and math.isfinite(worth(cheaper[0], name)):
        next_best = cheaper[0]
        more = next_best[name] - best[name]
        share = f"{_cost(next_best)['hours'] / hours:.0%} of its {duration(3600 * hours)}"
        sentence += f"; <code>{escape(next_best['run'])}</code> is {more:.3g} above it for {share}"
    return sentence


def _cell(value: Any, text: str | None = None, kind: str = "") -> str:
    """A cell that sorts by its value and shows its text."""
    shown = escape("-" if value is None else str(value)) if text is None else text
    key = "" if value is None else escape(str(value), quote=True)
    return f"<td class='{kind}' data-v='{key}'>{shown}</td>"


def table(titles: list[tuple[str, bool]], body: str) -> str:
    """A table that can be sorted. titles: with whether their columns hold numbers."""
    head = "".join(f"<th{' class=n' if number else ''}>{escape(title)}</th>" for title, number in titles)
    kind = "wide long" if body.count("<tr") > LONG else "wide"
    return (
        f"<div class='{kind}'><table class=sortable><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def listed(sentences: list[str]) -> str:
    """Sentences as a list, of which the first are shown."""
    first, others = sentences[:TAKEN], sentences[TAKEN:]
    items = ["".join(f"<li>{sentence}</li>" for sentence in some) for some in (first, others)]
    more = f"<details><summary>{len(others)} more</summary><ul class=take>{items[1]}</ul></details>" if others else ""
    return f"<ul class=take>{items[0]}</ul>{more}" if first else ""


def _choices(rows: list[dict[str, Any]]) -> str:
    """Boxes that narrow a long table down; dense models stay in it."""
    if len(rows) <= LONG:
        return ""
    boxes = []
    for key in ("model", "pattern"):
        values = list(dict.fromkeys(row[key] for row in rows if row["run"] != "dense"))
        options = "".join(f"<option value='{escape(value, quote=True)}'>{escape(value)}</option>" for value in values)
        if len(values) > 1:
            boxes.append(f"<label>{key} <select data-key={key}><option value=''>all</option>{options}</select></label>")
    options = "<option value=''>all</option><option value=star>best</option>"
    boxes.append(f"<label>runs <select data-key=star>{options}</select></label>")
    return f"<p class=choices>{' '.join(boxes)}</p>"


def _heading(name: str) -> str:
    return name.replace("_", " ", 1) if name.startswith(tables.SHOWN) else name


def _interval(name: str, row: dict[str, Any]) -> str:
    what = name.removeprefix("perplexity_")
    change, low, high = (row.get(f"delta_{part}{what}") for part in ("", "low_", "high_"))
    if what == name or change is None or low is None or high is None:
        return ""
    return f"<small>{change:+.2f} [{low:+.2f}, {high:+.2f}]</small>"


def _cost(row: dict[str, Any]) -> dict[str, float]:
    return row["_of"].cost_of(row["model"], row["run"]) or {}


def best_of(rows: list[dict[str, Any]], names: list[str]) -> set[tuple[int, str]]:
    """Place and column of the best figure of every model and pattern, among figures that can be compared.

    None among accuracies that lie within two standard errors: which is the best is chance.
    """
    found = set()
    for name in names:
        if not name.startswith(tables.SHOWN):
            continue
        groups: dict[tuple, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            if row["run"] != "dense" and math.isfinite(row.get(name) or math.nan):
                groups[row["model"], row["pattern"], row.get(f"same_{name}")].append(place)
        choose = min if name.startswith("perplexity_") else max
        for places in groups.values():
            values = [rows[place][name] for place in places]
            error = max((rows[place].get(tables.error_of(name)) or 0 for place in places), default=0)
            if len(places) > 1 and max(values) - min(values) >= 2 * error:
                best = choose(values)
                found |= {(place, name) for place in places if rows[place][name] == best}
    return found


def marks_of(rows: list[dict[str, Any]], names: list[str]) -> dict[tuple[int, str], str]:
    """A letter for every figure of a column in which not all can be compared."""
    found = {}
    for name, conditions in _conditions(rows, names).items():
        for place, row in enumerate(rows):
            if row.get(name) is not None:
                found[place, name] = MARKS[conditions.index(row.get(f"same_{name}")) % len(MARKS)]
    return found


def legend(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """What the letters say."""
    notes = []
    for name, conditions in _conditions(rows, names).items():
        what = name.removeprefix("perplexity_") if name.startswith("perplexity_") else name.partition("_")[2]
        said = []
        for condition in conditions:
            row = next(row for row in rows if row.get(f"same_{name}") == condition and row.get(name) is not None)
            if f"window_{what}" in row:
                tokens, window, stride = (row.get(f"{part}_{what}") for part in ("tokens", "window", "stride"))
                text = f"{tokens or 0:,} tokens in windows of {window}, stride {stride}"
            else:
                text = f"{row.get(f'items_{what}')} items, {row.get(f'shots_{what}')} examples in the prompt"
            of = ", ".join(dict.fromkeys(r["model"] for r in rows if r.get(f"same_{name}") == condition))
            said.append(f"{MARKS[conditions.index(condition) % len(MARKS)]} {escape(of)}: {text}")
        notes.append(
            f"<b>{escape(_heading(name))}</b>: figures with different letters cannot be compared; text, tokenizer or "
            f"settings differ: {'; '.join(said)}."
        )
    return notes


def _conditions(rows: list[dict[str, Any]], names: list[str]) -> dict[str, list[Any]]:
    """What the figures of a column depend on, for the columns where that differs."""
    found = {}
    for name in names:
        kinds = list(dict.fromkeys(row.get(f"same_{name}") for row in rows if row.get(name) is not None))
        if name.startswith(tables.SHOWN) and len(kinds) > 1:
            found[name] = kinds
    return found
