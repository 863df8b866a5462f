from pathlib import Path

from job import execute

execute(
    snakemake,
    "summarise:summarise",
    evaluations=list(snakemake.input.evaluations),
    recipes=list(snakemake.input.recipes),
    metrics=list(snakemake.input.metrics),
    folder=Path(snakemake.output.csv).parent,
)
