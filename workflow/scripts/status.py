from job import execute

execute(snakemake, "status:show")
