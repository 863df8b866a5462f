from job import execute, optional

execute(
    snakemake,
    "update:update_block",
    model=snakemake.input.model,
    grams=snakemake.input.gram,
    mask=optional(snakemake.input.mask),
    output=snakemake.output.weights,
    metrics=snakemake.output.metrics,
    block=int(snakemake.wildcards.block),
    labels=dict(snakemake.wildcards),
    device=snakemake.config["device"],
)
