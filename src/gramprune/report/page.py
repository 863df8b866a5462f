"""The report's page: one HTML file with everything in it, which opens from disk and asks the network for nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from html import escape
from typing import Any

import yaml

from gramprune.experiment.settings import Run
from gramprune.progress import duration
from gramprune.report import results as tables
from gramprune.report.charts import method
from gramprune.report.read import Results, Text

TITLES = {
    "perplexity": "Perplexity",
    "sparsity": "Perplexity over sparsity",
    "accuracy": "Accuracy on tasks",
    "layers": "Layer errors",
    "reduction": "What refinement and update won",
    "depth": "Errors along the depth of the model",
    "swaps": "Swaps",
    "cost": "Time and memory",
    "rules": "Rules",
    "jobs": "Jobs",
}
MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"

NO_NETWORK = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""What a browser lets the page do: its own scripts and styles, and nothing from elsewhere."""

AS_DATA = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}
"""JSON in a page: no text in it can end its element, nor begin a comment in which the rest would be lost."""

STYLE = """
:root{--line:#e5e7eb;--soft:#6b7280;--ink:#111827}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:#fff;margin:0 auto;max-width:62rem;padding:1rem}
h1{font-size:1.6rem;margin:.4rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-top:1px solid var(--line);
padding-top:1rem}h3{font-size:1rem;margin:1.2rem 0 .2rem}p{margin:.3rem 0;max-width:46rem}.soft{color:var(--soft)}
nav a{margin-right:.9rem;white-space:nowrap}a{color:#1d4ed8;text-decoration:none}
.wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.86rem}
th,td{padding:.28rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap;vertical-align:top}
th{background:#f9fafb;position:sticky;top:0}.sortable th{cursor:pointer}.sortable th:after{content:" ↕";color:#c4c9d1}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr.dense td{background:#f3f4f6}
td.best{font-weight:650;color:#047857}td.best:before{content:"★ "}small{color:var(--soft);display:block}
.bad{color:#b91c1c}figure{margin:.6rem 0}figcaption{color:var(--soft);max-width:46rem}
pre{background:#f9fafb;padding:.6rem;overflow-x:auto;font-size:.8rem}summary{cursor:pointer}
.vega-bind{font-size:.86rem;margin:.3rem 0}.vega-bind select{max-width:18rem}
"""
SCRIPT = """
document.querySelectorAll('table.sortable').forEach(table => table.querySelectorAll('th').forEach((head, column) => {
  head.addEventListener('click', () => {
    const body = table.tBodies[0], down = head.dataset.down = head.dataset.down === '1' ? '' : '1';
    const value = row => {
      const cell = row.cells[column], text = cell.dataset.v ?? cell.textContent.replaceAll(',', '');
      return text === '' || isNaN(text) ? text : Number(text);
    };
    [...body.rows].sort((a, b) => {
      if (a.className !== b.className) return a.className === 'dense' ? -1 : 1;
      const x = value(a), y = value(b);
      return (x > y ? 1 : x < y ? -1 : 0) * (down ? 1 : -1);
    }).forEach(row => body.append(row));
  });
}));
document.querySelectorAll('script[data-chart]').forEach(script => vegaEmbed('#' + script.dataset.chart,
  JSON.parse(script.textContent), {renderer: 'svg', actions: {export: true, source: false, compiled: false,
  editor: false}}));
"""


def page(results: list[Results], charts: dict[str, tuple[str, dict[str, Any]]], library: str) -> str:
    """The whole page. charts: caption and Vega-Lite specification by name. library: Vega's JavaScript."""
    models = ", ".join(dict.fromkeys(row["model"] for one in results for row in one.rows))
    runs = sum(row["run"] != "dense" for one in results for row in one.rows)
    links = {"answer": "Runs", **{n: TITLES[n] for n in charts}, "health": "Health", "provenance": "Provenance"}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">',
        "<meta name=generator content=gramprune>",
        f"<title>Gramprune: {escape(models)}</title><style>{STYLE}</style>",
        f"<h1>Pruned models, compared</h1><p class=soft>{escape(models)}; {runs} runs beside the dense model. "
        f"{escape(', '.join(str(one.folder) for one in results))}</p>",
        "<nav>" + " ".join(f"<a href='#{name}'>{title}</a>" for name, title in links.items()) + "</nav>",
        answer(results),
    ]
    for name, (caption, spec) in charts.items():
        content = json.dumps(spec, separators=(",", ":"), allow_nan=False).translate(AS_DATA)
        parts.append(
            f"<h2 id={name}>{TITLES[name]}</h2><figure><figcaption>{escape(caption)}</figcaption>"
            f"<div class=wide><div id=chart-{name}></div></div></figure>"
            f"<script type='application/json' data-chart=chart-{name}>{content}</script>"
        )
    parts += [health(results), provenance(results)]
    library = library.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    parts.append(f"<script>{library}</script><script>{SCRIPT}</script></html>")
    return "\n".join(parts)


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
    notes = "".join(f"<p>{note}</p>" for note in legend(rows, figures))
    return (
        "<h2 id=answer>Runs</h2><p>The best run of every model and pattern is marked with ★; where intervals overlap, "
        "that says little. Below a perplexity: how much higher than dense, with a 95 % interval (bootstrap over "
        "windows); with an accuracy, its standard error. Time is that of all jobs that a run needs, shared ones "
        "counted in full; wall: if every job had a machine at once. A click on a heading sorts.</p>"
        + _table(titles, "".join(body))
        + notes
    )


def _cell(value: Any, text: str | None = None, kind: str = "") -> str:
    """A cell that sorts by its value and shows its text."""
    shown = escape("-" if value is None else str(value)) if text is None else text
    key = "" if value is None else escape(str(value), quote=True)
    return f"<td class='{kind}' data-v='{key}'>{shown}</td>"


def _table(titles: list[tuple[str, bool]], body: str) -> str:
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


def health(results: list[Results]) -> str:
    """What could make one doubt a run."""
    heading = [
        "model",
        "run",
        "tokens seen",
        "damping",
        "dead inputs",
        "made worse",
        "swaps",
        "certified",
        "kept zeros",
    ]
    body = []
    for one in results:
        for model in one.layouts:
            for run in one.settings.runs:
                body.append([model, run.name, *_checks(one, model, run)])
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body)
    return (
        "<h2 id=health>Health</h2><p>Damping: the largest that an update needed, relative to the mean of the Gram "
        "matrix' diagonal; raised in steps of ten where a matrix was not positive definite. Dead inputs: columns that "
        "no token used. Made worse: linears whose error after refinement or update is above the one before. Certified: "
        "rows whose swaps ended because none helps any more. Kept zeros: weights that are zero although the mask keeps "
        "them.</p>" + _table([(name, False) for name in heading], lines)
    )


def _checks(one: Results, model: str, run: Run) -> list[str]:
    rows = list(one.stages_of(model, run))
    captured = [row for stage, row in rows if stage == "capture"]
    tokens = min((row["tokens"] for row in captured), default=0)
    dampings = [row["damping"] for stage, row in rows if stage == "update" and row.get("damping") is not None]
    dead = sum(row["dead_inputs"] for row in captured)
    worse = [row for s, row in rows if s in ("refine", "update") and row["error"] > 1.0001 * row["error_before"]]
    places = ", ".join(f"block {row['block']} {row['linear']}" for row in worse[:8]) + (" …" if len(worse) > 8 else "")
    swapped = [row for stage, row in rows if stage == "refine" and row.get("swaps") is not None]
    shares = [row["certified"] for row in swapped if row.get("certified") is not None]
    zeros = one.kept_zeros(model, run.name)
    return [
        f"{tokens:,}",
        f"{max(dampings):g}" if dampings else "-",
        f"{dead:,}" if not dead else f"<span class=bad>{dead:,}</span>",
        f"<span class=bad title='{escape(places, quote=True)}'>{len(worse)}<small>{escape(places)}</small></span>"
        if worse
        else "0",
        f"{sum(row['swaps'] for row in swapped):,}" if swapped else "-",
        f"{100 * sum(shares) / len(shares):.1f} %" if shares else "-",
        "-" if zeros is None else f"{zeros:,}",
    ]


def provenance(results: list[Results]) -> str:
    """What a reviewer needs to make a number again."""
    parts = ["<h2 id=provenance>Provenance</h2>"]
    for one in results:
        if len(results) > 1:
            parts.append(f"<h3>{escape(str(one.folder))}</h3>")
        parts.append(_listed(_sources(one)))
        for row in one.rows:
            parts.append(_made(one, row["model"], row["run"]))
    return "".join(parts)


def _sources(one: Results) -> list[tuple[str, str]]:
    """Models, texts, tasks, versions and machines."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for (model, _), evaluations in one.evaluations.items():
        for evaluation in evaluations:
            made = evaluation.model
            at = f" at revision {made.revision}" if made.revision else ""
            found[f"model {model}"][f"{made.source}{at}, fingerprint {made.fingerprint}"] = None
            if evaluation.data:
                found[f"text {evaluation.dataset}"][_text(evaluation.data)] = None
            for name, task in evaluation.tasks.items():
                said = f"lm-eval {evaluation.lm_eval}, version {task.version}, {task.items:,} items"
                found[f"task {name}"][f"{said}, sha256 {task.sha256[:16]}"] = None
            found["versions"][", ".join(f"{k} {v}" for k, v in evaluation.versions.items())] = None
            machine = evaluation.hardware
            gpu = f", {machine.gpu}" if machine.gpu else ""
            found["evaluated on"][f"{machine.cpu}, {machine.cores} cores{gpu}; {evaluation.dtype}"] = None
    return [(name, "; ".join(texts)) for name, texts in found.items()]


def _text(data: Text) -> str:
    source = data.settings.get("hub") or data.settings.get("path") or "embedded"
    source = ", ".join(source) if isinstance(source, list) else source
    at = f" at revision {data.revision}" if data.revision else ""
    return f"{source}{at}, {data.documents:,} documents, sha256 {data.sha256[:16]}"


def _listed(pairs: list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in pairs)
    return f"<div class=wide><table>{lines}</table></div>"


def _made(one: Results, model: str, run: str) -> str:
    """The configuration of one run alone, and the command that makes its figures."""
    config = one.settings.experiment
    config["model"] = [m for m in config["model"] if m["name"] == model]
    if run != "dense":
        config["runs"] = [r for r in config["runs"] if r["name"] == run]
    shown = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    measures = [f"perplexity_{text.dataset}" for text in one.settings.evaluation.perplexity.datasets]
    measures += [f"tasks_{name}" for name in one.settings.tasks]
    targets = " \\\n    ".join(f"results/{model}/{run}/evaluation/{name}.json" for name in measures)
    command = f"snakemake --cores 8 \\\n    {targets} \\\n    --configfile this.yaml"
    return (
        f"<details><summary>{escape(model)} / {escape(run)}: settings and command</summary><p>this.yaml:</p>"
        f"<pre>{escape(shown)}</pre><pre>{escape(command)}</pre></details>"
    )
