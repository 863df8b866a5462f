"""Tables and a picture of all models and runs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from gramprune import files, results


def summarise(
    evaluations: list[Path],  # <model>/<run>/evaluation/<measure>.json
    recipes: list[Path],  # <model>/<run>/checkpoint/gramprune.json
    csv: Path,
    parquet: Path,
    html: Path,
    plot: Path,
    settings: list[dict[str, Any]],  # model, run and recipe of every row
    code: str,
) -> None:
    """Write the summary as CSV, Parquet and HTML, and perplexities as a picture."""
    measured: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in map(Path, evaluations):
        measured[path.parts[-4], path.parts[-3]].append(files.read_json(path))
    sparsity = {(p.parts[-4], p.parts[-3]): files.read_json(p)["sparsity"] for p in map(Path, recipes)}
    rows = results.summary_rows(settings, measured, sparsity)
    results.write_table(results.table(rows), parquet=parquet, csv=csv)
    with files.atomic(Path(html)) as part:
        part.write_text(results.as_html(rows), encoding="utf-8")
    results.plot(rows, plot)


def layers(metrics: list[Path], parquet: Path, settings: dict[str, Any], code: str) -> None:
    """Write what every stage measured of every linear."""
    results.write_table(results.table(results.layer_rows([files.read_json(path) for path in metrics])), parquet=parquet)
