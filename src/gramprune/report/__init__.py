"""The report: one page, and its pictures as SVG, of one folder of results or of several."""

from __future__ import annotations

from pathlib import Path

from gramprune.report.read import read
from gramprune.storage import files


def write_report(folders: list[Path], html: Path, pictures: Path) -> None:
    """Write the page to `html`, and every picture as SVG into the folder `pictures`.

    Raises GrampruneError for a folder without results.
    """
    import vl_convert

    from gramprune.report.charts import all_charts
    from gramprune.report.page import page

    results = [read(Path(folder)) for folder in folders]
    charts = {name: (caption, chart.to_dict()) for name, (caption, chart) in all_charts(results).items()}
    with files.atomic_folder(Path(pictures)) as part:
        for name, (_, spec) in charts.items():
            (part / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with files.atomic(Path(html)) as part:
        part.write_text(page(results, charts, library), encoding="utf-8")
