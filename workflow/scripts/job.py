"""What every script shares: a job is described, and done by a warm process where there is one, or else by this one."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is begun yet: end without a word

import ask_warm  # noqa: E402


def execute(snakemake, stage: str, online: bool = False, **arguments) -> None:
    """Call `stage` ("module:function" in gramprune.stages) with settings, code digest and these arguments.

    What it returns, if anything, is said in the line that every finished job leaves in its log and on the terminal.
    Where one only wants to know what would be called (`snakemake.told`, see `describe`), nothing is.
    """
    module, _, function = stage.partition(":")
    request = {
        "module": f"gramprune.stages.{module}",
        "function": function,
        "arguments": {"settings": json.loads(snakemake.params.settings), "code": snakemake.params.code, **arguments},
        "where": " ".join([snakemake.rule, *map(str, snakemake.wildcards)]),
        "log": snakemake.log[0],
        "threads": snakemake.threads,
        "gpus": int(snakemake.resources.get("gpu") or 0),
        "online": online,
        "began": process_start(),
    }
    request = json.loads(json.dumps(request, default=str))  # plain lists and strings, whoever does it
    if hasattr(snakemake, "told"):
        snakemake.told.update(request)
        return
    status = None if online else ask_warm.ask(request)
    if status is None:
        from work import leave, work

        leave(work(**request))
    os._exit(status)


def describe(job, config: dict[str, Any], script: Path) -> dict[str, Any]:
    """What a job of Snakemake's graph would call. script: its rule's."""
    import runpy

    names = ("input", "output", "params", "wildcards", "resources", "threads", "log")
    told: dict[str, Any] = {}
    job = SimpleNamespace(**{name: getattr(job, name) for name in names}, rule=job.rule.name, config=config, told=told)
    runpy.run_path(str(script), {"snakemake": job})
    return {**told, "inputs": list(map(str, job.input))}


def process_start() -> float:
    """When this process began, in seconds since the epoch."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except OSError:  # no /proc on macOS
        return time.time() - time.process_time()


def trail_of(path):
    """Where a block's activations come from: the folder that holds the blocks' folders."""
    return Path(path).parts[-3]


def optional(files):
    """A rule's input that may be empty."""
    return str(files) if files else None
