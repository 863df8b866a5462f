from job import execute, optional, trail_of

execute(
    snakemake,
    "update:update_block",
    model=snakemake.input.model,
    tokens=snakemake.input.tokens,
    grams=snakemake.input.gram,
    shared=list(snakemake.input.shared),
    mask=optional(snakemake.input.mask),
    allocation=optional(snakemake.input.allocation),
    output=snakemake.output.weights,
    metrics=snakemake.output.metrics,
    trail=trail_of(snakemake.input.gram),
    block=int(snakemake.wildcards.block),
    labels=dict(snakemake.wildcards),
    device=snakemake.config["device"],
)
