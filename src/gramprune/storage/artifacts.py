"""Artifacts: the files between stages, each with its provenance, checked by whoever reads them.

The header of every safetensors artifact carries, as JSON, the stage, the settings and code digest that it was made
with *as the job really saw them*, the model's fingerprint, the block, the digests of the artifacts that it was made
from and the versions of the libraries. Nothing in it depends on time or place: same inputs, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.storage import tensorfile
from gramprune.storage.files import versions
from gramprune.storage.tensorfile import Header, Writer


@dataclass(frozen=True)
class Artifact:
    """An artifact's file, header and provenance; its tensors are read when asked for."""

    path: Path
    header: Header
    provenance: dict[str, Any]

    @property
    def digest(self) -> str:
        """Stands for the whole content: the header holds a digest of the values."""
        return self.header.digest

    @property
    def names(self) -> list[str]:
        """The tensors in the file."""
        return sorted(self.header.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor."""
        return tensorfile.DTYPES[self._entry(name).dtype]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """One tensor, or those rows of it."""
        return tensorfile.read_tensor(self.path, self._entry(name), rows)

    def read_mask(self, name: str, columns: int) -> Tensor:
        """A mask that was stored as bits: (out, columns) bool."""
        return torch.from_numpy(np.unpackbits(self.read(name).numpy(), axis=1, count=columns)).bool()

    def _entry(self, name: str) -> tensorfile.Entry:
        if name not in self.header.entries:
            raise GrampruneError(
                f"{self.path} holds no {name!r} but {', '.join(self.names)}: it is from another model or version; "
                "delete it to have it made again."
            )
        return self.header.entries[name]


def read(path: Path | str, **expected: Any) -> Artifact:
    """Open an artifact whose provenance has all the `expected` values (stage, model, block, …).

    Raises GrampruneError with both values where one differs, and if the file is not whole or not an artifact.
    """
    path = Path(path)
    header = tensorfile.read_header(path)
    try:
        provenance = dict(json.loads(header.metadata["gramprune"]))
    except (KeyError, ValueError, TypeError) as error:
        raise GrampruneError(
            f"{path} was not written by gramprune (no provenance in its header); delete it to have it made again."
        ) from error
    for key, value in expected.items():
        if provenance.get(key) != value:
            raise GrampruneError(
                f"{path} was made for {key} {provenance.get(key)!r}, but {key} {value!r} is expected here; "
                "it was put there by hand or belongs to another experiment: delete it to have it made again."
            )
    return Artifact(path, header, provenance)


def provenance(stage: str, settings: dict, code: str, inputs: dict[str, Artifact], **more: Any) -> dict[str, Any]:
    """What is written into an artifact: see the module's text."""
    return {
        "stage": stage,
        "settings": settings,
        "code": code,
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "versions": versions(),
        **more,
    }


@contextmanager
def writing(
    path: Path | str,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    provenance: dict[str, Any],  # may be added to, a little, until the end
) -> Iterator[Writer]:
    """A writer for a new artifact of those tensors, filled piece by piece."""
    with tensorfile.writing(Path(path), tensors, _metadata(provenance)) as writer:
        yield writer
        writer.metadata.update(_metadata(provenance))


def write(path: Path | str, tensors: dict[str, Tensor], provenance: dict[str, Any]) -> None:
    """Write a whole artifact."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writing(path, shapes, provenance) as writer:
        for name, tensor in tensors.items():
            writer.append(name, tensor)


def _metadata(provenance: dict[str, Any]) -> dict[str, str]:
    return {"gramprune": json.dumps(provenance, sort_keys=True)}


def mask_shape(rows: int, columns: int) -> tuple[torch.dtype, tuple[int, int]]:
    """Dtype and shape of a mask stored as bits."""
    return torch.uint8, (rows, -(-columns // 8))


def pack_mask(mask: Tensor) -> Tensor:
    """A mask (out, in) bool as bits (out, ⌈in/8⌉) uint8."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1))
