from job import execute

execute(
    snakemake,
    "texts:fetch_data",
    online=True,
    output=snakemake.output.data,
    name=snakemake.wildcards.dataset,
)
