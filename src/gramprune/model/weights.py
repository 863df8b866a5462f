"""The tensors of a model folder, read piece by piece from the files that are the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.model.folder import AGAIN, INDEX, is_sharded, weight_files, weight_map
from gramprune.storage import tensorfile
from gramprune.storage.tensorfile import Entry


class Weights:
    """The tensors of a model folder by key.

    Raises GrampruneError if there are no safetensors, if a file is missing or not whole, or a key is in two files.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.files = weight_files(self.folder)
        self._places: dict[str, tuple[Path, Entry]] = {}
        for path in self.files:
            for key, entry in tensorfile.read_header(path, AGAIN).entries.items():
                if key in self._places:
                    raise GrampruneError(f"{path} holds {key!r}, which {self._places[key][0]} has too; {AGAIN}.")
                self._places[key] = (path, entry)
        if not self._places:
            raise GrampruneError(f"{self.files[0]} holds no tensor; {AGAIN}.")
        self._check_index()

    def _check_index(self) -> None:
        for key, name in (weight_map(self.folder) if is_sharded(self.folder) else {}).items():
            if key not in self._places or self._places[key][0].name != name:
                raise GrampruneError(
                    f"{self.folder / INDEX} says that {key!r} is in {name}, but it is not: the index and the files are "
                    f"of different checkpoints; {AGAIN}."
                )

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self._places)

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

    def read(self, key: str, rows: slice | None = None) -> Tensor:
        """One tensor, or those rows of it, in the stored dtype and orientation."""
        return tensorfile.read_tensor(*self.place(key), rows)

    def stored_dtype(self, key: str) -> str:
        """The dtype of a tensor as its file calls it, such as BF16."""
        return self.place(key)[1].dtype

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of a tensor, as stored."""
        return tensorfile.DTYPES[self.stored_dtype(key)]

    def first_dtype(self) -> torch.dtype:
        """The dtype of the first floating tensor."""
        dtypes = (tensorfile.DTYPES.get(entry.dtype) for _, entry in self._places.values())
        return next((dtype for dtype in dtypes if dtype is not None and dtype.is_floating_point), torch.float32)
