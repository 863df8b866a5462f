"""The report's page: one HTML file with everything in it, which opens from disk and asks the network for nothing."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from html import escape
from typing import Any

import yaml

from gramprune.experiment.run import Run
from gramprune.report.answer import LONG, answer, listed, table
from gramprune.report.hurt import sentences
from gramprune.report.read import Results, Text

TITLES = {
    "worst": "What hurts most",
    "perplexity": "Perplexity",
    "sparsity": "Perplexity over sparsity",
    "price": "Perplexity over time",
    "accuracy": "Accuracy on tasks",
    "layers": "Layer errors",
    "reduction": "What refinement and update won",
    "depth": "Errors along the depth of the model",
    "reconstruction": "Blocks trained as a whole",
    "zeros": "Sparsity along the depth of the model",
    "swaps": "Swaps",
    "cost": "Time and memory",
    "rules": "Rules",
    "jobs": "Jobs",
}

NO_NETWORK = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""What a browser lets the page do: its own scripts and styles, and nothing from elsewhere."""

AS_DATA = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}
"""JSON in a page: no text in it can end its element, nor begin a comment in which the rest would be lost."""

STYLE = """
:root{color-scheme:light dark;--line:#e5e7eb;--soft:#6b7280;--ink:#111827;--paper:#fff;--shade:#f9fafb;--dense:#f3f4f6;
--good:#047857;--bad:#b91c1c;--link:#1d4ed8}
@media(prefers-color-scheme:dark){:root{--line:#374151;--soft:#9ca3af;--ink:#e5e7eb;--paper:#111418;--shade:#1b2027;
--dense:#20262e;--good:#34d399;--bad:#f87171;--link:#93c5fd}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:100rem;
padding:1rem clamp(.6rem,2vw,2.5rem)}
h1{font-size:1.6rem;margin:.4rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-top:1px solid var(--line);
padding-top:1rem}h3{font-size:1rem;margin:1.2rem 0 .2rem}p{margin:.3rem 0;max-width:46rem}.soft{color:var(--soft)}
nav a{margin-right:.9rem;white-space:nowrap}a{color:var(--link);text-decoration:none}
.take{font-size:1.06rem;max-width:60rem}.take li{margin:.2rem 0}
.wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.86rem}
th,td{padding:.28rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td{white-space:nowrap}th{background:var(--shade);position:sticky;top:0}
.sortable th{cursor:pointer;vertical-align:bottom}.sortable th:after{content:"\u00a0↕";color:var(--soft);opacity:.6}
.sortable th:first-child,.sortable td:first-child{position:sticky;left:0;background:var(--paper)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr.dense td,.sortable tr.dense td{background:var(--dense)}
td.best{font-weight:650;color:var(--good)}td.best:before{content:"★ "}small{color:var(--soft);display:block}
.columns label{margin-right:.9rem;white-space:nowrap;font-size:.86rem}
.bad{color:var(--bad)}figure{margin:.6rem 0}figcaption{color:var(--soft);max-width:46rem}
pre{background:var(--shade);padding:.6rem;overflow-x:auto;font-size:.8rem}summary{cursor:pointer}
.long{max-height:min(75vh,50rem);overflow:auto}.sortable .pattern{white-space:normal;min-width:7rem;max-width:16rem}
.choices label{margin-right:.9rem}select{max-width:18rem}
.vega-embed .chart-wrapper{display:flex;flex-direction:column}.vega-embed .vega-bindings{order:-1}
.vega-bind{font-size:.86rem;margin:.3rem 0}.vega-bind select{max-width:18rem}
@media print{.long{max-height:none}.columns,nav{display:none}}
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
document.querySelectorAll('.columns input').forEach((box, column) => box.addEventListener('change', () => {
  const table = document.querySelector('#answer ~ .wide table');
  for (const row of table.rows) row.cells[column + 1].style.display = box.checked ? '' : 'none';
}));
const choices = [...document.querySelectorAll('.choices select')];
choices.forEach(box => box.addEventListener('change', () => {
  for (const row of document.querySelector('#answer ~ .wide table').tBodies[0].rows)
    row.style.display = choices.every(({dataset: {key}, value}) => !value || row.dataset[key] === value
      || row.className === 'dense' && key !== 'model') ? '' : 'none';
}));
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
document.querySelectorAll('script[data-chart]').forEach(script => vegaEmbed('#' + script.dataset.chart,
  JSON.parse(script.textContent), {renderer: 'svg', theme: dark ? 'dark' : undefined, config: {background: null,
  text: {color: dark ? '#e5e7eb' : '#111827'}, axis: {gridColor: dark ? '#2f3742' : '#e3e6ea'}},
  actions: {export: true, source: false, compiled: false, editor: false}}));
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
    said = {"worst": listed(sentences(results))}
    for name, (caption, spec) in charts.items():
        content = json.dumps(spec, separators=(",", ":"), allow_nan=False).translate(AS_DATA)
        parts.append(
            f"<h2 id={name}>{TITLES[name]}</h2>{said.get(name, '')}<figure><figcaption>{escape(caption)}</figcaption>"
            f"<div class=wide><div id=chart-{name}></div></div></figure>"
            f"<script type='application/json' data-chart=chart-{name}>{content}</script>"
        )
    parts += [health(results), provenance(results)]
    library = library.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    parts.append(f"<script>{library}</script><script>{SCRIPT}</script></html>")
    return "\n".join(parts)


def health(results: list[Results]) -> str:
    """What could make one doubt a run."""
    heading = [
        "model",
        "run",
        "tokens seen",
        "damping",
        "dead inputs",
        "starved experts",
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
        "no token used. Starved experts: those with too few tokens for a Gram matrix of their own, and what they were "
        "pruned by, all experts' inputs (layer) or magnitude. Made worse: linears whose error after refinement or "
        "update is above the one before. Certified: rows whose swaps ended because none helps any more. Kept zeros: "
        "weights that are zero although the mask keeps "
        "them.</p>" + table([(name, False) for name in heading], lines)
    )


def _checks(one: Results, model: str, run: Run) -> list[str]:
    rows = list(one.stages_of(model, run))
    captured = [row for stage, row in rows if stage == "capture"]
    tokens = min((row["tokens"] for row in captured), default=0)
    dampings = [row["damping"] for stage, row in rows if stage == "update" and row.get("damping") is not None]
    dead = sum(row["dead_inputs"] for row in captured)
    worse = [row for s, row in rows if s in ("refine", "update") and row["error"] > 1.0001 * row["error_before"]]
    starved = Counter(row["fallback"] for row in captured if row.get("fallback"))
    places = ", ".join(f"block {row['block']} {row['linear']}" for row in worse[:8]) + (" …" if len(worse) > 8 else "")
    swapped = [row for stage, row in rows if stage == "refine" and row.get("swaps") is not None]
    shares = [row["certified"] for row in swapped if row.get("certified") is not None]
    zeros = one.kept_zeros(model, run.name)
    return [
        f"{tokens:,}",
        f"{max(dampings):g}" if dampings else "-",
        f"{dead:,}" if not dead else f"<span class=bad>{dead:,}</span>",
        ", ".join(f"<span class=bad>{count:,} by {kind}</span>" for kind, count in starved.items()) or "-",
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
        for model in one.layouts:
            made = "".join(_made(one, model, row["run"]) for row in one.rows if row["model"] == model)
            many = len(one.rows) > LONG
            parts.append(f"<details><summary>{escape(model)}</summary>{made}</details>" if many else made)
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
