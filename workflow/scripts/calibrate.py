from job import execute

execute(
    snakemake,
    "calibrate:calibrate",
    model=snakemake.input.model,
    dataset=snakemake.input.data,
    output=snakemake.output.tokens,
)
