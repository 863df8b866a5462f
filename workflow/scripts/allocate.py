from job import execute, optional

execute(
    snakemake,
    "allocate:allocate_blocks",
    model=snakemake.input.model,
    tokens=snakemake.input.tokens,
    grams=list(snakemake.input.grams),
    mapping=optional(snakemake.input.mapping),
    output=snakemake.output.allocation,
    device=snakemake.config["device"],
)
