from job import execute

execute(
    snakemake,
    "fetch:fetch_model",
    online=True,
    manifest=snakemake.output.model,
    folder=snakemake.output.get("folder", ""),
)
