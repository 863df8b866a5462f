"""The report: one page, and its pictures as SVG, of one folder of results or of several."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.report.read import read
from gramprune.storage import files


def write_report(folders: list[Path], html: Path, pictures: Path) -> None:
    """Write the page to `html`, and every picture as SVG into the folder `pictures`, beside what is in there.

    Raises GrampruneError for a folder without results, or with damaged ones, and where a file of the user's is in the
    way.
    """
    import vl_convert

    from gramprune.report.charts import all_charts
    from gramprune.report.page import page

    if Path(html).exists() and not is_report(Path(html)):
        raise GrampruneError(f"{html} is there already and is no report; give another name for the page, or move it.")
    results = [read(Path(folder)) for folder in folders]
    charts = {name: (caption, finite(chart.to_dict())) for name, (caption, chart) in all_charts(results).items()}
    content = page(results, charts, vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    with files.atomic_folder(Path(pictures)) as part:
        for name, (_, spec) in charts.items():
            (part / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    with files.atomic(Path(html)) as part:
        part.write_text(content, encoding="utf-8")


def is_report(path: Path) -> bool:
    """Whether a file is a page of ours, which another may replace."""
    with suppress(OSError), open(path, "rb") as file:
        return b"<meta name=generator content=gramprune>" in file.read(2000)
    return False


def finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have: there is nothing to draw of them."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
