"""The machine that a job runs on: its device and how much memory was used."""

import resource
import sys

from gramprune.errors import GrampruneError


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


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far in MiB: `peak_host_mb`, and `peak_gpu_mb` where a GPU was used."""
    peak = {"peak_host_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return peak
