"""What every script shares: a stage is imported late, run with its settings, and its failure is said in a sentence."""

import contextlib
import ctypes
import gc
import json
import logging
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))  # the library need not be installed

from gramprune import machine
from gramprune.errors import GrampruneError

MIB = 1 << 20


def execute(snakemake, stage: str, online: bool = False, whole_model: bool = False, **arguments) -> None:
    """Call `stage` ("module:function" in gramprune.stages) with settings, code digest and these arguments.

    What it returns, if anything, is said in the line that every finished job leaves in its log and on the terminal.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    logging.raiseExceptions = False  # on a full disk the stage says so: a log that cannot be written adds nothing
    with contextlib.suppress(OSError):
        handlers.append(logging.FileHandler(snakemake.log[0], mode="w"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    log = logging.getLogger("gramprune")
    logging.captureWarnings(True)
    for library in ("httpx", "datasets", "filelock", "fsspec", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals; `gramprune.progress` writes lines

    if snakemake.resources.get("gpu"):
        machine.claim_gpu()
    return_freed_memory(16 * MIB if whole_model else MIB)
    gc.disable()  # importing makes many objects and no garbage: a fifth less time without the collector
    module, _, function = stage.partition(":")
    run = getattr(import_module(f"gramprune.stages.{module}"), function)
    gc.freeze()  # nor is it to look at them again and again while transformers imports a model's class: a fifth less
    gc.set_threshold(20_000)
    gc.enable()
    where = " ".join([snakemake.rule, *map(str, snakemake.wildcards)])
    started = time.time()
    try:
        said = run(settings=json.loads(snakemake.params.settings), code=snakemake.params.code, **arguments)
    except GrampruneError as error:
        log.error("gramprune: %s: %s", where, error)
        sys.exit(1)
    except BaseException:
        log.exception("gramprune: %s failed in a way that was not foreseen", snakemake.rule)
        sys.exit(1)
    taken = f"start-up {started - process_start():.2f} s, work {time.time() - started:.2f} s"
    found = f" {said};" if said else ""
    log.info("%s:%s %s, peak memory %d MiB", where, found, taken, machine.peak_memory()["peak_host_mb"])
    leave()


def leave() -> NoReturn:
    """End this process, whose files are all closed, at once: Python takes half a second to take torch apart."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def return_freed_memory(above: int) -> None:
    """Have glibc give freed tensors above so many bytes back at once: it would keep those under 32 MiB for ever.

    A tensor that comes from the system is filled with zeros, page by page; huge pages, of which torch is told here,
    make that a fifth cheaper. With 1 MiB a block job has a tenth less memory than with 16 MiB, and takes a quarter
    longer.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(AttributeError, OSError):  # other systems have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, above)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, max(1 << 24, 4 * above))  # M_TRIM_THRESHOLD: small ones are needed again and again


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
