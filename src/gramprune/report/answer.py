"""The report's first page: which run to take, and the table of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from html import escape
from typing import Any

from gramprune.progress import duration
from gramprune.report import results as tables
from gramprune.report.charts import method
from gramprune.report.read import Results

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
        cells += [_cell(text) for text in (counted, method(row), row["propagation"])]
        cost = _cost(row)
        cells += [_cell(cost.get(key), duration(3600 * cost[key]) if cost else "-", "n") for key in spent]
        body.append(f"<tr{' class=dense' if row['run'] == 'dense' else ''}>{''.join(cells)}</tr>")
    titles = [(name, False) for name in head] + [(_heading(name), True) for name in figures] + [("sparsity", True)]
    titles += [(name, False) for name in ("pattern", "method", "propagation")]
    titles += [(name, True) for name in spent.values()]
    boxes = " ".join(f"<label><input type=checkbox checked> {escape(title)}</label>" for title, _ in titles[1:])
    notes = "".join(f"<p>{note}</p>" for note in legend(rows, figures))
    said = "".join(f"<li>{sentence}</li>" for sentence in takes(results, html=True))
    return (
        f"<h2 id=answer>Runs</h2><ul class=take>{said}</ul><p>★: the best run of every model and pattern; where "
        "intervals overlap, that says little. Below a perplexity: how much higher than dense, with a 95 % interval "
        "(bootstrap over windows); with an accuracy, its standard error. Time is that of all jobs that a run needs, "
        "shared ones counted in full; wall: if every job had a machine at once. A click on a heading sorts.</p>"
        f"<details class=columns><summary>Columns</summary>{boxes}</details>" + table(titles, "".join(body)) + notes
    )


def takes(results: list[Results], html: bool = False) -> list[str]:
    """For every model, text and pattern: which run to take, what it costs, and which cheaper one comes near.

    html: as a page has it, else plain text.
    """

    def marked(tag: str, text: str) -> str:
        return f"<{tag}>{escape(text)}</{tag}>" if html else text

    said = []
    rows = rows_of(results)
    for name in (name for name in tables.shown(rows) if name.startswith("perplexity_")):
        groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["run"] != "dense" and row.get(name) is not None:
                groups[row["model"], row["pattern"], row.get(f"same_{name}")].append(row)
        for (model, pattern, same), found in groups.items():
            dense = next((r[name] for r in rows if r["run"] == "dense" and r.get(f"same_{name}") == same), None)
            several = len({row["model"] for row in rows}) > 1
            where = f"{model}, {pattern}" if several else pattern
            said.append(f"{marked('b', where)}: {_taken(found, name, dense, marked)}.")
    return said


def _taken(
    found: list[dict[str, Any]],
    name: str,
    dense: float | None,
    marked: Callable[[str, str], str],  # a text with an HTML tag around it, where a page is written
) -> str:
    """Which of some runs to take, by one figure, and the cheaper one that comes nearest."""
    ranked = sorted(found, key=lambda row: row[name])
    best = ranked[0]
    text = name.removeprefix("perplexity_").replace("_", " ")
    beside = f", dense {tables.cell(name, {name: dense})}" if dense is not None else ""
    what = f"{marked('code', best['run'])}: perplexity {tables.cell(name, best)} on {marked('span', text)}{beside}"
    sentence = f"take {what}" if len(ranked) > 1 else what
    hours = _cost(best).get("hours")
    cheaper = [r for r in ranked[1:] if hours and _cost(r) and _cost(r)["hours"] < 0.7 * hours]
    if hours and cheaper:
        next_best = cheaper[0]
        more = next_best[name] - best[name]
        share = f"{_cost(next_best)['hours'] / hours:.0%} of its {duration(3600 * hours)}"
        sentence += f"; {marked('code', next_best['run'])} is {more:.3g} above it for {share}"
    return sentence


def _cell(value: Any, text: str | None = None, kind: str = "") -> str:
    """A cell that sorts by its value and shows its text."""
    shown = escape("-" if value is None else str(value)) if text is None else text
    key = "" if value is None else escape(str(value), quote=True)
    return f"<td class='{kind}' data-v='{key}'>{shown}</td>"


def table(titles: list[tuple[str, bool]], body: str) -> str:
    """A table that can be sorted. titles: with whether their columns hold numbers."""
    head = "".join(f"<th{' class=n' if number else ''}>{escape(title)}</th>" for title, number in titles)
    return f"<div class=wide><table class=sortable><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


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
    """Place and column of the best figure of every model and pattern, among figures that can be compared."""
    found = set()
    for name in names:
        if not name.startswith(tables.SHOWN):
            continue
        groups: dict[tuple, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            if row["run"] != "dense" and row.get(name) is not None:
                groups[row["model"], row["pattern"], row.get(f"same_{name}")].append(place)
        choose = min if name.startswith("perplexity_") else max
        for places in groups.values():
            if len(places) > 1:
                found.add((choose(places, key=lambda place: rows[place][name]), name))
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


def _conditions(rows: list[dict[str, Any]], names: list[str]) -> dict[str, list[str]]:
    """What the figures of a column depend on, for the columns where that differs."""
    found = {}
    for name in names:
        kinds = list(dict.fromkeys(row.get(f"same_{name}") for row in rows if row.get(name) is not None))
        if name.startswith(tables.SHOWN) and len(kinds) > 1:
            found[name] = kinds
    return found
