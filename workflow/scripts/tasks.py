from pathlib import Path

from job import execute

entries = {entry["name"]: entry for entry in snakemake.config["evaluation"]["tasks"]}
streamed = snakemake.config["streamed"][snakemake.wildcards.model]["tasks"][snakemake.wildcards.tasks]

execute(
    snakemake,
    "tasks:evaluate_tasks",
    model=snakemake.input.model,
    checkpoint=Path(str(snakemake.input.recipe)).parent if snakemake.input.recipe else None,
    tasks=snakemake.input.tasks,
    output=snakemake.output.result,
    device=snakemake.config["device"],
    batch_size=entries[snakemake.wildcards.tasks]["batch_size"] or snakemake.config["batch_size"],
    memory="streamed" if streamed else "whole",
)
