"""One job of an experiment, by the words that a person has for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gramprune.errors import GrampruneError, suggest
from gramprune.experiment import outputs, pipeline
from gramprune.experiment.pipeline import Job, Key

SHOWN = 8  # jobs that an error names
ASKED = "GRAMPRUNE_JOB"
"""The variable by which `python -m gramprune.stages` asks the Snakefile for one job; see describe_job in common.smk."""


def one_job(
    work: dict[Key, Job],
    what: str,  # a stage, or the path of a job's log
    model: str | None = None,
    run: str | None = None,
    block: int | None = None,
    name: str | None = None,  # of a text, an entry of tasks, a mask, an allocation
) -> Key:
    """The only job that it can be. Raises GrampruneError if there is none, or several, and says which there are."""
    if what.endswith(".log"):
        found = [key for key in work if has_log(key, what)]
        if not found:
            raise GrampruneError(
                f"no job of this experiment has the log {what}; give its --configfile, or name stage, run and block."
            )
        return found[0]
    of_stage = [key for key in work if key[0] == what]
    if not of_stage:
        raise GrampruneError(f"this experiment has no stage {what!r}; {suggest(what, {key[0] for key in work})}")
    given = {"model": model, "run": run, "block": block, "name": name}
    found = [key for key in of_stage if model in (None, *key[1:2]) and block in (None, *key[3:4])]
    found = [key for key in found if name in (None, *key[2:])]
    if run is not None:
        found = _of_run(work, found, run)
    if len(found) == 1:
        return found[0]
    said = ", ".join(f"{each} {value}" for each, value in given.items() if value is not None)
    of = f"{what} of {said}" if said else what
    if not found:
        raise GrampruneError(f"no job of this experiment is {of}; there are {_listed(of_stage)}.")
    missing = " or ".join(f"--{each}" for each, value in given.items() if value is None)
    raise GrampruneError(f"{len(found)} jobs are {of}: {_listed(found)}; say which, with {missing}.")


def has_log(key: Key, path: str) -> bool:
    """Whether a log, wherever the results are, is that of a job."""
    return f"/{Path(path)}".endswith(f"/logs/{outputs.stem(key)}.log")


def _of_run(work: dict[Key, Job], found: list[Key], run: str) -> list[Key]:
    """Those that a run's figures depend on; where some are its own, these. `dense`: those of the dense trail."""
    own = [key for key in found if run in key[2:3]]
    return own or [key for key in found if key in pipeline.needed(work, str(key[1]), run)]


def _listed(keys: Iterable[Key]) -> str:
    """Jobs by what their logs are called."""
    names = [outputs.stem(key) for key in keys]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
