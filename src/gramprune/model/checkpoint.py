"""A Hugging Face checkpoint folder: its tensors by key, and its streaming copy with pruned weights in place.

A pruned checkpoint has the shapes and dtypes of the dense one, so its files have the same headers and offsets: a
shard is copied as bytes and the pruned matrices are written over their places. Nothing else can change, and the
memory needed is that of one matrix.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.storage import tensorfile
from gramprune.storage.tensorfile import Entry


class Weights:
    """The tensors of a model folder by key. Raises GrampruneError if there are no whole safetensors files."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise GrampruneError(
                f"{folder} holds no .safetensors file; convert the checkpoint with save_pretrained first."
            )
        self._places: dict[str, tuple[Path, Entry]] = {}
        for path in files:
            for key, entry in tensorfile.read_header(path).entries.items():
                self._places[key] = (path, entry)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def place(self, key: str) -> tuple[Path, Entry]:
        """File and place of a tensor."""
        if key not in self._places:
            raise GrampruneError(
                f"{self.folder} holds no tensor {key!r} (its first key is {min(self._places)!r}): it is not the "
                "model that the earlier stages saw; run `snakemake -R fetch_model`."
            )
        return self._places[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, as stored."""
        return self.place(key)[1].shape

    def read(self, key: str) -> Tensor:
        """One tensor in the stored dtype and orientation."""
        return tensorfile.read_tensor(*self.place(key))

    def key_of(self, parameter: str) -> str | None:
        """The key of a model's parameter; some checkpoints omit the base model's name (`transformer.`)."""
        rest = parameter.partition(".")[2]
        return next((key for key in (parameter, rest) if key in self._places), None)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of a tensor, as stored."""
        return tensorfile.DTYPES[self.place(key)[1].dtype]

    def first_dtype(self) -> torch.dtype:
        """The dtype of the first floating tensor."""
        names = (entry.dtype for _, entry in self._places.values())
        return next(d for d in map(tensorfile.DTYPES.get, names) if d is not None and d.is_floating_point)


def pruned_copy(
    source: Path,
    target: Path,  # an existing folder
    matrices: Iterable[tuple[str, Tensor]],  # (key, values in the stored shape and dtype), any order
) -> None:
    """Copy a model folder and write the matrices over their places.

    Untouched tensors, keys, shard layout, ties, tokenizer and generation files are copied byte for byte; weights in
    other formats and subfolders are not. Raises GrampruneError if a matrix does not fit its place.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in (".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"):
            shutil.copyfile(path, target / path.name)
    weights = Weights(source)
    for key, matrix in matrices:
        path, entry = weights.place(key)
        if tuple(matrix.shape) != entry.shape or tensorfile.NAMES[matrix.dtype] != entry.dtype:
            raise GrampruneError(
                f"{key} in {path} is {entry.dtype} {list(entry.shape)}, but its pruned weight is "
                f"{tensorfile.NAMES[matrix.dtype]} {list(matrix.shape)}."
            )
        with open(target / path.name, "rb+") as file:
            file.seek(entry.start)
            file.write(tensorfile.to_bytes(matrix))
    for path in target.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
