"""The report's pictures as Vega-Lite charts, in the page's order: interactive in the page, SVG for papers."""

from __future__ import annotations

import altair as alt

from gramprune.report import chart_jobs, chart_layers, chart_runs
from gramprune.report.read import Results

CHARTS = {
    "worst": chart_layers.worst,
    "perplexity": chart_runs.perplexity,
    "sparsity": chart_runs.sparsity,
    "price": chart_runs.price,
    "accuracy": chart_runs.accuracy,
    "layers": chart_layers.layers,
    "reduction": chart_layers.reduction,
    "depth": chart_layers.depth,
    "reconstruction": chart_layers.reconstruction,
    "zeros": chart_layers.zeros,
    "swaps": chart_layers.swaps,
    "cost": chart_jobs.cost,
    "rules": chart_jobs.rules,
    "jobs": chart_jobs.jobs,
}


def all_charts(results: list[Results]) -> dict[str, tuple[str, alt.TopLevelMixin]]:
    """By name: a caption, and the chart. Those for which there is nothing to draw are left out."""
    found = {}
    for name, make in CHARTS.items():
        chart = make(results)
        if chart is not None:
            caption = " ".join((make.__doc__ or "").split())
            found[name] = (
                caption,
                chart.configure_view(strokeWidth=0).configure_axis(labelFontSize=11, labelSeparation=6),
            )
    return found
