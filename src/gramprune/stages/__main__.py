"""One job by hand: do what it would do, in this process, where a debugger can step through it.

    python -m gramprune.stages update --configfile my.yaml --run fast-0.5 --block 3
    python -m gramprune.stages perplexity --run dense --name wikitext2
    python -m pdb -m gramprune.stages results/logs/demo/fast-0.5/block_003/update.log

Typed where `snakemake` is typed. Snakemake is asked what the job would be told, as its rule and the configuration say
now: files, settings, the digest of the code. Nothing is known twice, and no job is started. Then the stage is called
and writes what the job would write. What was made from that is older then: the next `snakemake` makes it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from gramprune import home, machine
from gramprune.errors import GrampruneError
from gramprune.experiment.choice import ASKED
from gramprune.storage import lock

log = logging.getLogger("gramprune")


def main() -> None:
    """Do the job that the command line names."""
    options = argparse.ArgumentParser(
        "python -m gramprune.stages", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("what", metavar="STAGE", help="capture, mask, refine, update, …, or the path of a job's log")
    options.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="(config.yaml)")
    options.add_argument("--model", help="its name in results; where there are several")
    options.add_argument("--run", help="a run's name, or dense")
    options.add_argument("--block", type=int, help="from 0")
    options.add_argument("--name", help="of a text, an entry of tasks, a mask, an allocation; where there are several")
    words = vars(options.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job = described(words.pop("configfile"), words)
    except GrampruneError as error:
        sys.exit(f"gramprune: {error}")
    perform(job)


def described(config: Path, words: dict[str, Any]) -> dict[str, Any]:
    """What Snakemake would tell the job that these words stand for: see `execute` in workflow/scripts/job.py.

    Raises GrampruneError if there is no such job, if another Snakemake writes into the results, or if a file is missing
    that the job reads.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "job.json")
        asked = {ASKED: json.dumps({"answer": str(answer), "words": words})}
        # The report's job is named so that there is one: Snakemake looks at no Snakefile's `onstart` otherwise.
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(home.snakefile())]
        command += ["--workflow-profile", str(home.profile("default"))]
        command += ["--cores", "all", "--quiet", "all", "--nolock", "-R", "report"]
        done = subprocess.run(
            [*command, "--configfile", str(config)], env={**os.environ, **asked}, capture_output=True, text=True
        )
        if not answer.exists():
            said = (done.stderr + done.stdout).strip()
            said = said.partition("gramprune: ")[2] or said  # Snakemake's own words stand before it
            raise GrampruneError(said or f"snakemake ended with {done.returncode} and said nothing.")
        job = json.loads(answer.read_text(encoding="utf-8"))
    lock.take(Path(job["results"]))
    if missing := [path for path in job["inputs"] if not Path(path).exists()]:
        raise GrampruneError(
            f"{job['where']} reads {missing[0]}, which is not there; have it made with: snakemake --cores all "
            f"{missing[0]} --configfile {config}"
        )
    return job


def perform(job: dict[str, Any]) -> None:
    """Call the stage as the job would, with its threads and environment. What goes wrong is not caught."""
    machine.set_environment(job["online"])
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    if job["gpus"]:
        machine.claim_gpu(job["gpus"])
    stage = getattr(import_module(job["module"]), job["function"])
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(job["threads"])
    log.info("%s: %s.%s(%s)", job["where"], job["module"], job["function"], ", ".join(job["arguments"]))
    said = stage(**job["arguments"])  # a debugger steps in here
    log.info("%s: %s", job["where"], said or "done")


if __name__ == "__main__":
    main()
