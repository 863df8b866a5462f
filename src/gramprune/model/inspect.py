"""A local model's folder against its config: whatever would go wrong later is said here, from headers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError, first_line
from gramprune.model import folder as folders
from gramprune.model.folder import AGAIN
from gramprune.storage import files, fingerprint

FLOATING = ("F64", "F32", "BF16", "F16")
ELSEWHERE = re.compile(r"^(image|audio|video|vision|speech|boi|eoi|boa|eoa|bov|eov)_")
"""Tokens of images and sounds, as the tokenizer's settings call them: no text has them, so they need no embedding."""


def once(folder: Path, layout: dict[str, Any], path: Path) -> None:
    """Check a folder, unless it is known from the layout's file at `path` that it was right and has not changed."""
    known = [fingerprint.code(__name__), files.versions(), folders.stamp(folder)]
    if layout.get("checked") != known:
        check(folder, layout)
        files.write_json(path, {**layout, "checked": known})


def check(folder: Path, layout: dict[str, Any]) -> None:
    """Raises GrampruneError, in one sentence, for the first thing in a model's folder that is wrong.

    layout: of the folder's config.json. Imports transformers; reads no weights, only what the files say of them.
    """
    import torch

    from gramprune.model.keys import Keys
    from gramprune.model.loading import empty_model, missing, parse_config, refuse_adapter
    from gramprune.model.weights import Weights

    refuse_adapter(folder)
    weights = Weights(folder)
    model = empty_model(parse_config(folder), torch.float32)
    try:
        keys = Keys(model, weights)
        lost = keys.missing()
    except GrampruneError:
        raise
    except Exception as error:  # of transformers' conversion, for tensors that do not fit it
        raise GrampruneError(
            f"the tensors of {folder} do not fit its config.json: {first_line(error)} Give a folder that "
            "save_pretrained wrote."
        ) from error
    if lost:
        raise GrampruneError(missing(folder, lost))
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        check_tensor(keys, name, tuple(parameter.shape))
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for index, block in enumerate(layout["blocks"]):
        for name, linear in block["linears"].items():
            parameter = f"{layout['prefix']}.{index}.{name}"
            parameter = f"{parameter}.weight" if f"{parameter}.weight" in known else parameter
            keys.place(parameter, 0, linear.get("experts", 1))
    check_tokenizer(folder, len(model.get_input_embeddings().get_parameter("weight")))


def check_tensor(keys: Any, name: str, expected: tuple[int, ...]) -> None:
    """Raises GrampruneError for a parameter with another shape than config.json gives it, or that is no real number."""
    found, stored = keys.shape(name), keys.keys(name)
    for key in stored:
        dtype = keys.weights.stored_dtype(key)
        if dtype not in FLOATING:
            raise GrampruneError(
                f"{keys.weights.folder}: {key} is stored as {dtype}, but {' or '.join(FLOATING)} is expected: it seems "
                "to be quantised; give the checkpoint in 16 or 32 bits that it was made from."
            )
    if found is not None and found != expected:
        raise GrampruneError(
            f"{keys.weights.folder}: {', '.join(stored)} is {list(found)} in the checkpoint, {list(expected)} by "
            "config.json: they are of different models; give the config.json that belongs to these weights."
        )


def check_tokenizer(folder: Path, vocabulary: int) -> None:
    """Raises GrampruneError for a tokenizer that cannot be opened or used, or has tokens without an embedding.

    vocabulary: rows of the model's embeddings.
    """
    from gramprune.model.loading import open_tokenizer

    for path in folders.companions(folder):
        with open(path, "rb") as file:
            if file.read(8) == b"version " and path.suffix in (".json", ".model"):
                raise GrampruneError(
                    f"{path} is not the file itself but its Git LFS pointer; {AGAIN} (`git lfs pull`)."
                )
    tokenizer = open_tokenizer(folder)
    try:
        known = dict(tokenizer.get_vocab())
        tokens = tokenizer("The cat sat on the mat.")["input_ids"]
    except Exception as error:
        raise GrampruneError(f"the tokenizer of {folder} does not work: {first_line(error)}") from error
    if not tokens:
        raise GrampruneError(f"the tokenizer of {folder} makes no tokens of a sentence: it is empty; {AGAIN}.")
    elsewhere = _tokens_of_no_text(folder)
    beyond = {token: number for token, number in known.items() if number >= vocabulary and token not in elsewhere}
    if beyond:
        token = min(beyond, key=beyond.__getitem__)
        raise GrampruneError(
            f"{folder}: {len(beyond)} tokens of the tokenizer have no embedding: {token!r} is number "
            f"{beyond[token]:,}, but the model has {vocabulary:,}; give the tokenizer that belongs to it, or resize "
            "the embeddings and save both."
        )


def _tokens_of_no_text(folder: Path) -> set[str]:
    """The tokens that stand for images and sounds, by the tokenizer's settings."""
    path = folder / "tokenizer_config.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        parts = [stated, stated.get("extra_special_tokens") or {}, stated.get("model_specific_special_tokens") or {}]
    except (OSError, ValueError, AttributeError):
        return set()
    found = [value for part in parts if isinstance(part, dict) for key, value in part.items() if ELSEWHERE.match(key)]
    return {value["content"] if isinstance(value, dict) else value for value in found if value}
