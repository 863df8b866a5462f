"""Snakemake in forks of a process that has imported it: the same program, and a second less of each start."""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["snakemake.cli", "snakemake.report", "smart_open"])  # what reading a Snakefile needs


def snakemake(
    folder: Path, arguments: Sequence[str], environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """What `snakemake` with these arguments, typed in that folder, ends with and says."""
    with tempfile.TemporaryDirectory() as said:
        process = CONTEXT.Process(target=typed, args=(str(folder), list(arguments), environment, said))
        process.start()
        process.join(timeout)
        process.kill()
        process.join()
        stdout, stderr = (Path(said, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def typed(folder: str, arguments: list[str], environment: dict[str, str], said: str) -> None:
    """In the fork: what a shell does, then Snakemake's main function."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(said, name), os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [folder, *(path for path in sys.path if Path(path) != TESTS)]
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its forks without
