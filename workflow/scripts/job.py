"""What every script shares: a job is described, and done by a warm process where there is one, or else by this one."""

import json
import os
import signal
import time
from pathlib import Path
from typing import NoReturn

signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is begun yet: end without a word

import warm  # noqa: E402
from work import leave, work  # noqa: E402


def execute(snakemake, stage: str, online: bool = False, **arguments) -> NoReturn:
    """Call `stage` ("module:function" in gramprune.stages) with settings, code digest and these arguments.

    What it returns, if anything, is said in the line that every finished job leaves in its log and on the terminal.
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
    status = None if online else warm.ask(request)
    leave(work(**request) if status is None else status)


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
