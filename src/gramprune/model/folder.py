"""A model's folder: which of its files are the model, and which others travel with it.

Which weights are the model is decided as transformers decides it: the file that config.json names, else
`model.safetensors`, else exactly the files that the index names. Whatever else lies there (an average of the weights,
old shards, a twin in the vendor's own format) is not looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "download it again"
TOKENIZER = (
    "tokenizer*.json", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.*",
)  # fmt: skip
COMPANIONS = (
    "config.json", "generation_config.json", *TOKENIZER, "*processor_config.json", "README.md", "LICENSE*", "LICENCE*",
    "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""What travels with the weights: no code, pickles, adapters, or weights in other formats."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's tensors. Raises GrampruneError if there are none, or one is missing."""
    if not folder.is_dir():
        raise GrampruneError(f"model: the folder {folder} does not exist; give a model folder or a hub id.")
    if is_sharded(folder):
        return [inside(folder, name) for name in indexed(folder)]
    name = _named_weights(folder) or SINGLE
    if name == SINGLE and not os.path.lexists(folder / SINGLE):
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".gguf", ".pth"))
        found = f" (it holds {', '.join(others[:3])})" if others else ""
        raise GrampruneError(
            f"{folder} holds no {SINGLE}, nor {INDEX}, which transformers would load{found}; convert the checkpoint "
            "with save_pretrained first."
        )
    return [inside(folder, name)]


def is_sharded(folder: Path) -> bool:
    """Whether the index says which files are the model: where there is no single one."""
    return not _named_weights(folder) and not os.path.lexists(folder / SINGLE) and (folder / INDEX).exists()


def _named_weights(folder: Path) -> str | None:
    """The file of weights that config.json names itself, as few do."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        return None  # whoever reads the config says so
    if named is not None and not (isinstance(named, str) and named.endswith(".safetensors")):
        raise GrampruneError(
            f"{folder}/config.json: transformers_weights is {named!r}; only one file in safetensors is supported."
        )
    return named


def indexed(folder: Path) -> list[str]:
    """The names of the files that the index names."""
    return sorted(set(weight_map(folder).values()))


def weight_map(folder: Path) -> dict[str, str]:
    """From every key to the name of its file, as the index says."""
    path = inside(folder, INDEX)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not found or not all(isinstance(name, str) for name in found.values()):
            raise ValueError("no names")
    except OSError as error:
        raise GrampruneError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise GrampruneError(
            f"{path} is not an index of safetensors files: expected JSON with a weight_map; {AGAIN}."
        ) from error
    return found


def inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises GrampruneError if it is missing, or a name or link that leads out of the folder.

    Only the links of the hub's cache, from a snapshot to its repository's blobs, may leave it.
    """
    path, home = folder / name, folder.resolve()
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[1]
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.resolve().is_relative_to(home):
        raise GrampruneError(f"{path} leads out of the model folder, to {path.resolve()}; put the file itself there.")
    if not path.is_file():
        raise GrampruneError(f"{path} is missing: the download was not complete; {AGAIN}.")
    return path


def companions(folder: Path) -> list[Path]:
    """The files that travel with the weights. Raises GrampruneError for links out of the folder."""
    names = sorted(path.name for path in folder.iterdir() if any(fnmatch(path.name, p) for p in COMPANIONS))
    return [inside(folder, name) for name in names if not (folder / name).is_dir()]


def files(folder: Path) -> list[Path]:
    """All files of the folder that a result can depend on, and no others."""
    index = [inside(folder, INDEX)] if is_sharded(folder) else []
    return [*companions(folder), *index, *weight_files(folder)]


def stamp(folder: Path) -> list[list[Any]]:
    """Name, length and time of change of these files: while they are the same, what was found of them holds."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files(folder)]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises GrampruneError if it is missing or does not describe a model."""
    if not (folder / "config.json").exists():
        raise GrampruneError(f"model: {folder} has no config.json, so it is not a Hugging Face model folder.")
    path = inside(folder, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config["model_type"], str):
            raise TypeError("model_type")
        return config
    except OSError as error:
        raise GrampruneError(f"model: {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise GrampruneError(f"model: {path} is not a model's config.json: expected JSON with a model_type.") from error


def fingerprint(folder: Path) -> str:
    """Digest that tells one model folder from another without reading all of it.

    Covers config and tokenizer, and of every file of weights the length, the header and the first bytes of every
    tensor: two trainings of one architecture differ in all of them.
    """
    from gramprune.storage import tensorfile

    digest = hashlib.sha256()
    for path in companions(folder):
        if path.name == "config.json" or any(fnmatch(path.name, pattern) for pattern in TOKENIZER):
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    for path in weight_files(folder):
        header = tensorfile.read_header(path, AGAIN)
        digest.update(f"{path.name} {path.stat().st_size} {header.digest}\n".encode())
        with open(path, "rb") as file:
            for entry in header.entries.values():
                file.seek(entry.start)
                digest.update(file.read(min(entry.size, 4096)))
    return digest.hexdigest()[:16]
