from pathlib import Path

from job import execute, optional

execute(
    snakemake,
    "assemble:assemble",
    model=snakemake.input.model,
    weights=list(snakemake.input.weights),
    allocation=optional(snakemake.input.allocation),
    checkpoint=Path(snakemake.output.recipe).parent,
)
