"""Tables of all models and runs, and the report."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from gramprune.report import results
from gramprune.storage import files


def summarise(
    evaluations: list[Path],  # <model>/<run>/evaluation/<measure>.json
    recipes: list[Path],  # <model>/<run>/checkpoint/gramprune.json
    metrics: list[Path],  # of every stage and block
    folder: Path,  # of results: the outputs are in it
    settings: dict[str, Any],  # rows: model, run and recipe of every row; config: the experiment
    code: str,
) -> None:
    """Write `summary` as CSV, Parquet, Markdown and LaTeX, `layers.parquet`, and `experiment.json`: the settings."""
    folder = Path(folder)
    measured: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in map(Path, evaluations):
        measured[path.parts[-4], path.parts[-3]].append(files.read_json(path))
    sparsity = {(p.parts[-4], p.parts[-3]): files.read_json(p)["sparsity"] for p in map(Path, recipes)}
    rows = results.summary_rows(settings["rows"], measured, sparsity)
    results.write_table(results.table(rows), folder / "summary.parquet", folder / "summary.csv")
    for name, text in (("summary.md", results.as_markdown(rows)), ("summary.tex", results.as_latex(rows))):
        with files.atomic(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    layers = results.layer_rows([files.read_json(path) for path in metrics])
    results.write_table(results.table(layers), folder / "layers.parquet")
    files.write_json(folder / "experiment.json", {**settings, "code": code, "versions": files.versions()})
