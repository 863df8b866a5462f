from job import execute, optional

execute(
    snakemake,
    "reconstruct:reconstruct_block",
    model=snakemake.input.model,
    tokens=snakemake.input.tokens,
    inputs=snakemake.input.inputs,
    dense=optional(snakemake.input.dense),
    weights=snakemake.input.weights,
    owners=list(snakemake.input.owners),
    output=snakemake.output.weights,
    metrics=snakemake.output.metrics,
    block=int(snakemake.wildcards.block),
    labels=dict(snakemake.wildcards),
    device=snakemake.config["device"],
    batch_size=snakemake.config["batch_size"],
)
