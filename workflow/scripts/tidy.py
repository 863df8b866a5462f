from pathlib import Path

from job import execute

execute(
    snakemake,
    "tidy:tidy",
    results=Path(snakemake.config["results"]),
)
