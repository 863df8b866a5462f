from pathlib import Path

from job import execute

execute(
    snakemake,
    "report:report",
    results=Path(snakemake.config["results"]),
    html=snakemake.output.html,
    pictures=Path(snakemake.output.html).with_name("pictures"),
)
