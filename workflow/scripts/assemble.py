from pathlib import Path

from job import execute

execute(
    snakemake,
    "assemble:assemble",
    model=snakemake.input.model,
    weights=list(snakemake.input.weights),
    checkpoint=Path(snakemake.output.recipe).parent,
)
