from job import execute, optional

execute(
    snakemake,
    "capture:capture",
    model=snakemake.input.model,
    tokens=snakemake.input.tokens,
    before=optional(snakemake.input.before),
    weights=optional(snakemake.input.weights),
    owners=list(snakemake.input.owners),
    dense=optional(snakemake.input.dense),
    inputs=snakemake.output.inputs,
    grams=snakemake.output.gram,
    metrics=snakemake.output.metrics,
    trail=snakemake.wildcards.trail,
    block=int(snakemake.wildcards.block),
    labels=dict(snakemake.wildcards),
    device=snakemake.config["device"],
    batch_size=snakemake.config["batch_size"],
    room=int(2**30 * snakemake.config["calibration"]["gram_memory"]),
)
