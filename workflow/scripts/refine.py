from job import execute

execute(
    snakemake,
    "refine:refine_block",
    model=snakemake.input.model,
    grams=snakemake.input.gram,
    mask=snakemake.input.mask,
    output=snakemake.output.mask,
    metrics=snakemake.output.metrics,
    block=int(snakemake.wildcards.block),
    labels=dict(snakemake.wildcards),
    device=snakemake.config["device"],
)
