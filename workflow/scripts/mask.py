from job import execute, optional

execute(
    snakemake,
    "mask:mask_block",
    model=snakemake.input.model,
    grams=snakemake.input.gram,
    mask=optional(snakemake.input.get("mask")),
    output=snakemake.output.mask,
    metrics=snakemake.output.metrics,
    block=int(snakemake.wildcards.block),
    labels=dict(snakemake.wildcards),
    device=snakemake.config["device"],
)
