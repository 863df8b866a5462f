"""What a job needs, and what a device gives: bytes, operations and seconds."""

from __future__ import annotations

from dataclasses import dataclass

MIB, GIB = 2**20, 2**30
CUDA = 2 * GIB  # what the CUDA libraries take of host memory, and
CUDA_CONTEXT = 700 * MIB  # of the GPU's


@dataclass(frozen=True)
class Device:
    """What a device does per second, by its data sheet."""

    full: float  # float32 operations, without TF32
    half: float  # bfloat16 operations
    bandwidth: float  # bytes of its memory
    efficiency: float  # share of that which is reached
    memory: float = 0.0  # bytes; of a CPU, what the machine has


DEVICES = {
    "cpu": Device(75e9, 75e9, 10e9, 0.7),  # one thread of a server; both measured
    "a100": Device(19.5e12, 312e12, 2.0e12, 0.4, 80 * GIB),
    "h100": Device(67e12, 989e12, 3.35e12, 0.4, 79 * GIB),
    "h200": Device(67e12, 989e12, 4.8e12, 0.4, 139 * GIB),
}
STORAGE = 1e9  # bytes per second that files are read and written with
DOWNLOAD = 1e8  # bytes per second from the hub


@dataclass(frozen=True)
class Need:
    """What a job needs; bytes and operations."""

    base: float  # host memory of the process without tensors
    tensors: float = 0.0  # memory of the device that computes,
    gpu_tensors: float | None = None  # and of a GPU where that is not the same
    staging: float = 0.0  # host memory for what goes to or comes from a GPU
    disk: float = 0.0  # of what it writes,
    passing: float = 0.0  # of it hidden states, which `keep: gram` and `keep: results` remove,
    scratch: float = 0.0  # and what only `keep: results` removes
    aside: float = 0.0  # bytes of files that are there only while it works
    read: float = 0.0  # from files
    full: float = 0.0  # operations in the Gram matrices' dtype
    half: float = 0.0  # operations in the model's dtype
    traffic: float = 0.0  # bytes through the device's memory, where operations are not what takes the time
    fetched: float = 0.0  # bytes from the network
    accelerated: bool = False  # whether it has work for a GPU
    divisible: bool = False  # whether several can share its memory
    start: float = 2.0  # seconds to start and import

    def host(self, device: str) -> float:
        """Bytes of host memory on a machine with that device."""
        on_host = self.base + self.tensors
        on_gpu = self.base + CUDA + self.staging if self.accelerated else on_host
        return {"cpu": on_host, "auto": max(on_host, on_gpu)}.get(device, on_gpu)

    def gpu(self) -> float:
        """Bytes of GPU memory."""
        tensors = self.tensors if self.gpu_tensors is None else self.gpu_tensors
        return CUDA_CONTEXT + tensors if self.accelerated else 0.0

    def seconds(self, device: str, threads: int = 1) -> float:
        """Estimated wall time on one of `DEVICES`; a CPU's threads share its memory."""
        known = DEVICES[device if self.accelerated else "cpu"]
        cores = threads if known is DEVICES["cpu"] else 1
        computing = (self.full / known.full + self.half / known.half) / cores + self.traffic / known.bandwidth
        return self.start + computing / known.efficiency + (self.read + self.disk) / STORAGE + self.fetched / DOWNLOAD
