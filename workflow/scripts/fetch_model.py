from pathlib import Path

from job import execute

execute(
    snakemake,
    "fetch:fetch_model",
    online=True,
    manifest=snakemake.output.model,
    folder=Path(snakemake.output.model).with_name("model"),  # of an embedded one
)
