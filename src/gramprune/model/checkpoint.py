"""The streaming copy of a model's folder with pruned weights in place.

A pruned checkpoint has the shapes and dtypes of the dense one, so its files have the same headers and offsets: a
shard is copied as bytes and the pruned matrices are written over their places. Nothing else can change, and the
memory needed is that of one matrix.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.model import folder, places
from gramprune.model.places import Place
from gramprune.model.weights import Weights


def pruned_copy(
    source: Path,
    target: Path,  # an existing folder
    matrices: Iterable[tuple[Place, Tensor]],  # values in the stored orientation and dtype, any order
) -> None:
    """Copy the files that are the model, and what travels with them, and write the matrices over their places.

    Untouched tensors, keys, shard layout, ties, tokenizer and generation files are copied byte for byte; weights in
    other formats, code, adapters, links out of the folder and subfolders are not. Raises GrampruneError if a matrix
    does not fit its place.
    """
    for path in folder.files(source):
        shutil.copyfile(path, target / path.name)
    weights = Weights(source)
    for place, matrix in matrices:
        shape = (sum(len(range(*rows)) for _, *rows in place), weights.shape(place[0][0])[-1])
        if tuple(matrix.shape) != shape or matrix.dtype != places.dtype(place, weights):
            raise GrampruneError(
                f"{place[0][0]} in {source} is {places.dtype(place, weights)} {list(shape)}, but its pruned weight is "
                f"{matrix.dtype} {list(matrix.shape)}."
            )
        for name, start, content in places.pieces(place, matrix, weights):
            with open(target / name, "rb+") as file:
                file.seek(start)
                file.write(content)
    for path in target.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
