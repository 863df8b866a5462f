from pathlib import Path

from job import execute

execute(
    snakemake,
    "evaluate:evaluate_perplexity",
    model=snakemake.input.model,
    checkpoint=Path(str(snakemake.input.recipe)).parent if snakemake.input.recipe else None,
    dataset=snakemake.input.data,
    output=snakemake.output.result,
    device=snakemake.config["device"],
    batch_size=snakemake.config["batch_size"],
)
