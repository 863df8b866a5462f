"""Everything that can be known to be wrong before any job starts."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError, suggest
from gramprune.evaluation import zeroshot
from gramprune.experiment import settings
from gramprune.experiment.settings import Settings
from gramprune.model import layout
from gramprune.model.layout import selected
from gramprune.text import formats, read, sources


def check(config: dict[str, Any], planning: bool = False) -> tuple[Settings, dict[str, dict[str, Any]]]:
    """The settings of a parsed config.yaml, and the layout of every model by name.

    planning: only the models' config.json are needed, not weights and texts.

    Raises GrampruneError with one sentence for a setting that is wrong or that a model or text cannot satisfy.
    """
    chosen = settings.load(config)
    check_results(Path(chosen.results))
    layouts = {}
    for model in chosen.model:
        source = [model.kind, model.location, model.revision]
        path = Path(chosen.results, model.name, "layout.json")
        found = layout.cached(path, source, lambda source=source: sources.model_config(*source))
        check_model(found, model.name, chosen)
        layouts[model.name] = found
        if model.kind == "folder" and not planning:
            sources.check_folder(model.location)
    for place, entry in enumerate(chosen.evaluation.tasks):
        check_include_path(entry.include_path, place)
        zeroshot.folders(entry.tasks, entry.include_path, zeroshot.place(chosen.results), f"evaluation.tasks[{place}]")
    if not planning:
        check_texts(chosen)
    return chosen, layouts


def check_model(found: dict[str, Any], model: str, chosen: Settings) -> None:
    """Raises GrampruneError for settings that a model with this layout cannot have."""
    context = found["context"]
    lengths = {
        "calibration.length": chosen.calibration.length,
        "evaluation.perplexity.length": chosen.evaluation.perplexity.length,
    }
    for setting, length in lengths.items():
        if context and length > context:
            raise GrampruneError(
                f"config: {setting} is {length}, but the model {model} takes {context} tokens at most; lower it."
            )
    everything = sorted({name for block in found["blocks"] for name in block["linears"]})
    for pattern in chosen.exclude:
        if not any(fnmatch(name, pattern) for name in everything):
            raise GrampruneError(
                f"config: exclude: {pattern!r} matches no linear of the model {model}; {suggest(pattern, everything)}"
            )
    if not selected(everything, chosen.exclude):
        raise GrampruneError(f"config: exclude leaves nothing to prune in the model {model}.")
    for run in chosen.runs:
        for index, block in enumerate(found["blocks"]):
            for name in selected(block["linears"], chosen.exclude):
                columns = block["linears"][name]["columns"]
                run.pattern.check(columns, f"config: run {run.name!r}: in the model {model}, block {index}, {name}")


def check_results(folder: Path) -> None:
    """Raises GrampruneError for a folder of results, or one that it would be made in, that cannot be written."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        reason = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
        raise GrampruneError(
            f"config: results: {folder} could not be written: {os.strerror(reason)}; make its folder writable, or "
            "choose another."
        )


def check_include_path(folder: str | None, place: int) -> None:
    """Raises GrampruneError for a folder of task definitions that has none."""
    if folder is not None and not any(Path(folder).rglob("*.yaml")):
        raise GrampruneError(
            f"config: evaluation.tasks[{place}].include_path: the folder {folder} has no task definition (.yaml); "
            "give a folder that has."
        )


def check_texts(chosen: Settings) -> None:
    """Raises GrampruneError for local texts that cannot be what they are used for, as far as their beginnings tell.

    That is what is missing, of no known format, without a document, or certainly too short: a token is a byte at least.
    """
    calibration, perplexity = chosen.calibration, chosen.evaluation.perplexity
    uses = [(name, samples, calibration.length, calibration.length) for name, samples in calibration.shares.items()]
    for text in perplexity.datasets:
        windows = text.windows or perplexity.windows or 1
        uses.append((text.dataset, windows, perplexity.length, perplexity.stride or perplexity.length))
    for name in dict.fromkeys(use[0] for use in uses):
        dataset = chosen.all_datasets[name]
        if not dataset.path:
            continue
        kind = read.kind_of(dataset.source_settings, name)
        if kind == "messages":
            check_chat_templates(chosen, name)
        paths = [Path(path) for path in dataset.paths]
        if kind != "text" or any(path.suffix.lower() in (".parquet", *formats.COMPRESSED) for path in paths):
            continue
        size = sum(path.stat().st_size for path in paths)
        for count, length, stride in (use[1:] for use in uses if use[0] == name):
            text = length - 1  # BOS is none
            if size < text + (count - 1) * min(stride, text):
                raise GrampruneError(
                    f"config: the dataset {name} ({', '.join(dataset.paths)}) has {size:,} bytes, too little text for "
                    f"the {length + (count - 1) * stride:,} tokens that are asked for (samples or windows × length); "
                    "give more text or ask for less."
                )


def check_chat_templates(chosen: Settings, dataset: str) -> None:
    """Raises GrampruneError for conversations that are to be read by a local model whose tokenizer has no template."""
    for model in chosen.model:
        folder = Path(model.location)
        files = ("chat_template.jinja", "additional_chat_templates", "tekken.json")
        if model.kind == "hub" or any((folder / name).exists() for name in files):
            continue
        with suppress(OSError):
            if "chat_template" in (folder / "tokenizer_config.json").read_text(encoding="utf-8"):
                continue
        raise GrampruneError(
            f"config: the dataset {dataset} holds conversations, but the tokenizer of the model {model.name} has no "
            f"chat template; {read.NO_TEMPLATE}."
        )
