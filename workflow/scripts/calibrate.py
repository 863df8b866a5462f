from job import execute

execute(
    snakemake,
    "calibrate:calibrate",
    model=snakemake.input.model,
    datasets=list(snakemake.input.data),
    output=snakemake.output.tokens,
)
