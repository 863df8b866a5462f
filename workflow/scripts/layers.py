from job import execute

execute(
    snakemake,
    "summarise:layers",
    metrics=list(snakemake.input.metrics),
    parquet=snakemake.output.parquet,
)
