"""What would be pruned: the linears of every block, found from a model's config.json alone.

The model is built without weights; one block of each kind runs on zeros for a few tokens, which tells which linears
are called as modules, and which of them see the same input and so share a Gram matrix. Costs a second or two and no
noticeable memory (untouched zero pages), for a model of any size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.storage import files, fingerprint


def cached(path: Path, source: list[str | None], fetch: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The layout of a model, from `path` if it was made for the same config and libraries, else made and kept.

    source: what the model's config.json is fetched from. fetch: fetches it; a hub model's is asked for only once, so
    that planning needs no network afterwards. The file is for people too: it lists what will be pruned.
    transformers is imported only when it must be made.
    """
    known: dict[str, Any] = {}
    with suppress(GrampruneError, TypeError, ValueError):  # a missing or damaged one is made again: it is only kept
        known = dict(files.read_json(path))
    from_hub = source[0] == "hub" and known.get("source") == source
    config = known["config"] if from_hub and "config" in known else fetch()
    key = fingerprint.short(fingerprint.canonical([config, files.versions(), fingerprint.code(__name__)]))
    if known.get("key") == key and known.get("source") == source:
        return known
    layout = {"key": key, "source": source, **describe(config), "config": config}
    files.write_json(path, layout)
    return layout


def describe(config: dict[str, Any]) -> dict[str, Any]:
    """Blocks, their linears and the context length of the model that a config.json describes.

    `blocks[i]["linears"]` maps a linear's name to `rows`, `columns` and `input`, the first linear with the same input;
    `blocks[i]["unseen"]` lists linears whose weight is read without calling the module: they stay dense. Besides: the
    number of `parameters` of every block, `outside` the blocks and of the `head` where it is not tied; hidden `width`,
    `vocabulary` and `dtype`.
    Raises GrampruneError for architectures that cannot be pruned.
    """
    import torch

    from gramprune.model.blocks import Blocks, inputs_of, is_transposed, linears, shared_inputs

    try:
        parsed = _parse(config)
        dtype = torch.bfloat16
        blocks = Blocks(parsed, dtype, lambda name, like: torch.zeros(like.shape, dtype=dtype))
    except (KeyError, ValueError, TypeError) as error:
        reason = str(error).split(" Should contain")[0].splitlines()[0]
        raise GrampruneError(
            f"config.json (model_type {config.get('model_type')!r}) is not a causal language model that the installed "
            f"transformers knows: {reason}"
        ) from error
    kinds: dict[str, dict[str, Any]] = {}
    described = []
    for index in range(len(blocks)):
        shapes = {n: (*m.weight.shape, is_transposed(m)) for n, m in linears(blocks[index]).items()}
        kind = f"{type(blocks[index]).__name__} {shapes}"
        if kind not in kinds:
            with blocks.loaded(index) as block, inputs_of(linears(block)) as inputs:
                blocks.forward(torch.zeros(1, 4, dtype=torch.int64))
            first = shared_inputs(inputs)
            kinds[kind] = {
                "linears": {
                    name: {"rows": rows, "columns": columns, "input": first[name]}
                    for name, (a, b, transposed) in shapes.items()
                    if name in first
                    for rows, columns in [(b, a) if transposed else (a, b)]
                },
                "unseen": sorted(shapes.keys() - first.keys()),
                "parameters": sum(p.numel() for p in blocks[index].parameters()),
            }
        described.append(kinds[kind])
    text = parsed.get_text_config()
    return {
        "model_type": config["model_type"],
        "context": getattr(text, "max_position_embeddings", None),
        "dtype": str(text.dtype or "float32").removeprefix("torch."),
        "width": text.hidden_size,
        "vocabulary": text.vocab_size,
        **blocks.sizes,
        "blocks": described,
    }


def summary(layout: dict[str, Any], exclude: list[str]) -> str:
    """What will be pruned, in a line."""
    sizes = []
    for block in layout["blocks"]:
        chosen = [block["linears"][name] for name in selected(block["linears"], exclude)]
        sizes += [linear["rows"] * linear["columns"] for linear in chosen]
    unseen = sorted({name for block in layout["blocks"] for name in block["unseen"]})
    dense = f"; left dense, as they are never called: {', '.join(unseen)}" if unseen else ""
    return f"{len(layout['blocks'])} blocks, {len(sizes)} linears with {sum(sizes):,} weights are pruned{dense}."


def _parse(config: dict[str, Any]) -> Any:
    """The config as transformers reads it from a file, which decodes what JSON cannot say."""
    from transformers import AutoConfig

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def selected(linears: Iterable[str], exclude: list[str]) -> list[str]:
    """The linears that no pattern such as `*.router` excludes."""
    return [name for name in linears if not any(fnmatch(name, pattern) for pattern in exclude)]
