from pathlib import Path

from job import execute

execute(
    snakemake,
    "tasks:fetch_tasks",
    online=True,
    output=snakemake.output.tasks,
    results=Path(snakemake.config["results"]),
)
