"""The machine that a job runs on: its device, how much memory it has, and how much was used."""

import fcntl
import logging
import os
import platform
import re
import resource
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError

log = logging.getLogger(__name__)
_claimed: list[int] = []  # open files, whose locks end with the process, however it ends


def set_environment(online: bool) -> None:
    """What a job's libraries read when they are imported."""
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals; `gramprune.progress` writes lines
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # see `return_freed_memory` in work.py
    # Threads that wait for each other sleep: where a core is shared, those that spin make a job ten times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def claim_gpu(count: int = 1) -> None:
    """Of several GPUs that are visible, make one this process's own, or more, so that jobs beside it get others.

    To be called before torch looks for GPUs. Where a scheduler shows a job its own GPUs there is nothing to choose.
    Waits until so many are free. Raises GrampruneError if none can be claimed.
    """
    names = visible_gpus()
    if len(names) <= count:
        return
    folder = _own_folder()
    waited = False
    while not _claimed:
        refusals, taken = [], {}
        for name in names:
            path = folder / f"gpu-{re.sub('[^A-Za-z0-9-]', '_', name)}.lock"
            try:
                # Nothing is followed or emptied: what lies there may be a link.
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                refusals.append(f"{path}: {error.strerror}")
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                continue
            taken[name] = file
            if len(taken) == count:
                _claimed.extend(taken.values())
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
                log.info("GPU %s of %s", ",".join(taken), ", ".join(names))
                return
        for file in taken.values():  # a job that waits for more holds none
            os.close(file)
        if len(names) - len(refusals) < count:
            raise GrampruneError(f"no GPU can be claimed: {refusals[0]}; remove what lies there.")
        if not waited:
            log.info("too many of the GPUs %s are taken; waiting", ", ".join(names))
            waited = True
        time.sleep(1)


def visible_gpus() -> list[str]:
    """What CUDA calls the GPUs that a process may see here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
    return [name for name in visible.split(",") if name]


def _own_folder() -> Path:
    """A folder on this machine that is this user's alone: the one of the session, or one that is made.

    Raises GrampruneError if there is none to be had.
    """
    user = os.geteuid()
    session = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}")
    made = [Path(place, f"gramprune-{user}") for place in (tempfile.gettempdir(), "/var/tmp", "/dev/shm")]
    for folder in (session, *made):
        with suppress(OSError):
            if folder != session:
                folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            private = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077
            if private and os.access(folder, os.W_OK):
                return folder
    raise GrampruneError(
        f"GPUs are shared by locks in a folder of your own, but {made[0]} is another user's or a link; remove it, or "
        "set CUDA_VISIBLE_DEVICES to one GPU."
    )


def forks_are_safe() -> bool:
    """Whether a process that has imported torch can be forked here: not where it might use a GPU, nor on macOS."""
    return sys.platform == "linux" and not Path("/proc/driver/nvidia").exists() and not Path("/dev/kfd").exists()


def gpu() -> str | None:
    """What this machine's first GPU is called, as far as that is known without torch; None where jobs see none."""
    return _first_gpu() if os.environ.get("CUDA_VISIBLE_DEVICES", "all") else None


@cache  # planning asks for every job
def _first_gpu() -> str | None:
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            if found := re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE):
                return found[1].strip()
    return "" if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists() else None


@cache
def gpu_memory() -> int | None:
    """Bytes of the smallest GPU that this machine's driver tells of, without torch; None where it tells of none."""
    if gpu() is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(int(line) for line in said.split()) * 2**20
    return None


@cache
def memory() -> int:
    """Bytes of host memory that a job may have: this machine's, or what a container or scheduler leaves of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(KeyError, ValueError):
        found.append(int(os.environ["SLURM_MEM_PER_NODE"]) * 2**20)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().partition("0::")[2].strip())
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                found.append(int((folder / "memory.max").read_text()))
    return min(size for size in found if size > 0)


def device(wanted: str) -> str:
    """ "auto" is "cuda" where there is one, else "cpu". Raises GrampruneError for a device that is not there."""
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        if not torch.cuda.is_available():
            raise GrampruneError(
                f"device: {wanted!r} is asked for, but torch {torch.__version__} sees no GPU; use `auto`."
            )
        torch.set_float32_matmul_precision("highest")  # float32 is float32: TF32 would round what is factorised
    return wanted


@cache  # planning asks for every job
def multiplies(dtype: str) -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16 or float16, which take several times as
    long without; not known of other systems than Linux."""
    wanted = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}[dtype]
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return not wanted.isdisjoint(next(line for line in lines if re.match("flags|Features", line)).split())
    return False


ITEM = 128
"""Tokens that an automatic batch counts for an item of a task, whose length is not known before."""


def batch(size: int | str, length: int, device: str) -> int:
    """How many sequences of so many tokens go through a model at once, where that may be "auto".

    Then it is as many tokens as a CPU's caches hold what is made of, or as keep a GPU busy. Measured for blocks of 576
    on a server CPU, 1,024 tokens take a tenth less time than 4,096, and a fifth less memory.
    """
    if size != "auto":
        return int(size)
    return max(1, (16_384 if device.startswith("cuda") else 1_024) // length)


def hardware(device: str) -> dict[str, Any]:
    """What a stage ran on: `cpu`, `cores`, and `gpu` where it used one."""
    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        found["cpu"] = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def give_memory_back() -> None:
    """Between two jobs of one process: what the first has left free goes back, and peaks begin anew."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM becomes what is in memory now


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far in MiB: `peak_host_mb`, and `peak_gpu_mb` where a GPU was used."""
    peak = {"peak_host_mb": _peak_host() // 2**20}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return peak


def _peak_host() -> int:
    """Bytes. Not `ru_maxrss` on Linux: it begins with what the process had that started this one."""
    with suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
