# Gramprune: prune large language models, one cached stage per rule.
#
#   snakemake --cores 8                 the runs of config.yaml
#   snakemake --cores 8 --configfile examples/llama-3.2-1b.yaml
#   snakemake -n                        what would be done, and why
#   snakemake --cores 1 plan            what it would take: jobs, memory, disk, time
#   snakemake --cores 1 status          how far it is, and how long the rest will take
#   snakemake --cores 1 tidy            remove what finished runs no longer need
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/begin.smk"


if (
    not workflow.configfiles
):  # a file given with --configfile stands alone, nothing is merged into it

    configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/checkpoint.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/manage.smk"


localrules:
    all,
    fetch_model,
    fetch_data,
    fetch_tasks,
    plan,
    status,
    tidy,


rule all:
    default_target: True
    input:
        "<results>/report.html",
        "<results>/summary.csv",


# From here on there are locks and jobs to put in order, which Snakemake does.
signal.signal(signal.SIGINT, signal.default_int_handler)


onstart:
    if choice.ASKED in os.environ:
        describe_job()
    lock_results()
    begin_countdown()
    start_warm_process()


onerror:
    logger.error(advice(log))
