"""Do one job in this process: its log, its environment, its stage, its record, and its failure in a sentence."""

import contextlib
import ctypes
import gc
import logging
import os
import re
import signal
import sys
import time
from importlib import import_module
from typing import Any, NoReturn

import library  # noqa: F401

from gramprune import interrupt, machine
from gramprune.errors import GrampruneError
from gramprune.experiment import measured

MIB = 1 << 20


def work(
    module: str,
    function: str,
    arguments: dict[str, Any],
    where: str,  # rule and wildcards, for people
    log: str,
    threads: int,
    gpus: int,  # that it asks for
    online: bool,
    began: float,  # when the job's process was started, seconds since the epoch
    note: str = "",  # to be said first
) -> int:
    """Do a job in this process, in which nothing else is done; its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt.as_ctrl_c)
    handlers: list[logging.Handler] = []
    logging.raiseExceptions = False  # on a full disk the stage says so: a log that cannot be written adds nothing
    with contextlib.suppress(OSError):
        measured.place(log).unlink(missing_ok=True)
        handlers.append(logging.FileHandler(log, mode="w"))
    if not handlers or not is_screen(2):
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    logger = logging.getLogger("gramprune")
    logging.captureWarnings(True)
    for name in ("httpx", "datasets", "filelock", "fsspec", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if note:
        logger.warning("%s: %s", where, note)
    try:
        machine.set_environment(online)
        if gpus:
            machine.claim_gpu(gpus)
        return_freed_memory(16 * MIB)
        gc.disable()  # importing makes many objects and no garbage: a fifth less time without the collector
        run = getattr(import_module(module), function)
        gc.freeze()  # nor is it to look at them again and again while transformers imports a model's class
        gc.set_threshold(20_000)
        gc.enable()
        started = time.time()
        said = run(**arguments)
        taken = measured.record(log, began, started)
    except GrampruneError as error:
        logger.error("gramprune: %s: %s", where, error)
        return 1
    except (KeyboardInterrupt, SystemExit):
        logger.error("%s: interrupted", where)
        return interrupt.INTERRUPTED
    except BaseException as error:
        if (lack := lacks_memory(error)) is None:
            logger.exception("gramprune: %s failed in a way that was not foreseen", where)
        else:
            advice = "give the job more, lower batch_size, or see docs/cluster.md"
            logger.error("gramprune: %s: there is not enough memory (%s): %s.", where, lack, advice)
        return 1
    found = f" {said};" if said else ""
    parts = taken.start_seconds, taken.seconds - taken.start_seconds, taken.host_mb
    logger.info("%s:%s start-up %.2f s, work %.2f s, peak memory %d MiB", where, found, *parts)
    return 0


def is_screen(file: int) -> bool:
    """Whether an open file is the screen of `snakemake --logger gramprune`, which shows what stands in logs."""
    try:
        found = os.fstat(file)
    except OSError:  # it is closed
        return False
    return os.environ.get("GRAMPRUNE_SCREEN") == f"{found.st_dev}:{found.st_ino}"


def lacks_memory(error: BaseException) -> str | None:
    """What is said of memory that was not to be had; None of another error. torch has no class of its own for hosts."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    of_torch = type(error).__name__ == "OutOfMemoryError" or re.search("allocate memory|not enough memory", said)
    return said if isinstance(error, MemoryError) or of_torch else None


def return_freed_memory(above: int) -> None:
    """Have glibc give freed tensors above so many bytes back at once: it would keep those under 32 MiB for ever.

    A tensor that comes from the system is filled with zeros, page by page; huge pages, of which torch is told here,
    make that a fifth cheaper. With 1 MiB a block job has a tenth less memory than with 16 MiB, and takes a quarter to a
    third longer.
    """
    with contextlib.suppress(AttributeError, OSError):  # other systems have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, above)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, max(1 << 24, 4 * above))  # M_TRIM_THRESHOLD: small ones are needed again and again


def leave(status: int) -> NoReturn:
    """End this process, whose files are all closed, at once: Python takes half a second to take torch apart."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
