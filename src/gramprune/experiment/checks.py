"""Everything that can be known to be wrong before any job starts."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gramprune.errors import GrampruneError, suggest
from gramprune.evaluation import zeroshot
from gramprune.experiment import allocations, evaluating, outputs, patterns, pipeline, settings
from gramprune.experiment.run import Run
from gramprune.experiment.settings import Model, Settings, Tasks
from gramprune.model import inspect, layout, source
from gramprune.model.layout import selected
from gramprune.pruning.sparsity import Pattern
from gramprune.storage import files
from gramprune.text import formats, read


def check(
    config: dict[str, Any],
    planning: bool = False,  # only the models' config.json are needed, not weights and texts
    written_in: Iterable[Path | str] = (),  # the files that hold the configuration
) -> tuple[Settings, dict[str, dict[str, Any]]]:
    """The settings of a parsed config.yaml, and the layout of every model by name.

    Raises GrampruneError with one sentence for a setting that is wrong or that a model or text cannot satisfy.
    """
    chosen = settings.load(config)
    layouts: dict[str, dict[str, Any]] = {}
    for look in _looks(chosen, layouts, planning, written_in, Path(chosen.results)):
        look()
    return chosen, layouts


def mistakes(config: Any, written_in: Iterable[Path | str] = ()) -> tuple[list[str], Settings | None]:
    """A sentence for all that is wrong with a parsed config.yaml, models and texts; the settings where they are right.

    What depends on something wrong is not looked at. Writes nothing into the folder of results, nor makes it.
    """
    try:
        chosen = settings.load(config, everything=True)
    except GrampruneError as error:
        return str(error).splitlines(), None
    found: list[str] = []
    with TemporaryDirectory() as folder:
        known = _copied_knowledge(chosen, Path(folder))
        for look in _looks(chosen, {}, False, written_in, known):
            try:
                look()
            except GrampruneError as error:
                found.append(str(error))
    return found, chosen


def _copied_knowledge(chosen: Settings, folder: Path) -> Path:
    """A folder with copies of what has been found out before and took long, for who is not to change the results."""
    results = Path(chosen.results)
    for path in (zeroshot.place(results), *(results / model.name / "layout.json" for model in chosen.model)):
        copy = folder / path.relative_to(results)
        copy.parent.mkdir(exist_ok=True)
        with suppress(OSError):
            shutil.copyfile(path, copy)
    return folder


def _looks(
    chosen: Settings,
    layouts: dict[str, dict[str, Any]],  # filled, by the models' names
    planning: bool,
    written_in: Iterable[Path | str],
    known: Path,  # the folder where it is kept what was found out about models and tasks
) -> Iterator[Callable[[], None]]:
    """What is looked at, one after the other; each raises GrampruneError for what is wrong."""
    yield partial(check_results, chosen, written_in, known == Path(chosen.results))
    for model in chosen.model:
        yield partial(look_at_model, chosen, model, layouts, planning, known)
    for place, entry in enumerate(chosen.evaluation.tasks):
        yield partial(check_tasks, chosen, layouts, known, place, entry)
    if not planning:
        for name in dict.fromkeys(name for _, name in chosen.dataset_uses):
            yield partial(check_text, chosen, name)


def look_at_model(
    chosen: Settings, model: Model, layouts: dict[str, dict[str, Any]], planning: bool, known: Path
) -> None:
    """Find or make the layout of a model. Raises GrampruneError for a model that cannot be pruned by these settings."""
    described = model.kind, model.location, model.revision
    path = known / model.name / "layout.json"
    found = layout.cached(path, [*described], lambda: source.config(*described))
    check_model(found, model.name, chosen)
    layouts[model.name] = found
    if model.kind == "folder" and not planning:
        inspect.once(Path(model.location), found, path)


def check_tasks(chosen: Settings, layouts: dict[str, dict[str, Any]], known: Path, place: int, entry: Tasks) -> None:
    """Raises GrampruneError for tasks that lm-eval does not know, and for those that would be streamed but cannot."""
    check_include_path(entry.include_path, place)
    setting, kept = f"evaluation.tasks[{place}]", zeroshot.place(known)
    found = zeroshot.folders(entry.tasks, entry.include_path, kept, setting)
    if any(evaluating.is_streamed(layout, chosen, entry.name) for layout in layouts.values()):
        generating = zeroshot.generating(entry.tasks, found)
        if generating:
            raise GrampruneError(zeroshot.needs_whole_model(setting, generating))


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
    if chosen.calibration.experts == "all" and not all(block.get("all_experts", True) for block in found["blocks"]):
        raise GrampruneError(
            f"config: calibration.experts is all, but the routers of the model {model} ({found['model_type']}) cannot "
            "be made to send every token to every expert; leave it out."
        )
    for run in chosen.runs:
        check_run(found, model, chosen, run)


def check_run(found: dict[str, Any], model: str, chosen: Settings, run: Run) -> None:
    """Raises GrampruneError for a sparsity that a linear of a model with this layout cannot have."""
    linears = [selected(block["linears"], chosen.exclude) for block in found["blocks"]]
    if isinstance(run.sparsity, dict) and (wrong := patterns.unsettled(run.sparsity, linears)):
        raise GrampruneError(f"config: run {run.name!r}: sparsity: in the model {model}, {wrong}")
    pruned = 0
    for index, names in enumerate(linears):
        recipe = run.at(index, len(linears), names)
        for name in names:
            if pattern := recipe.pattern_of(name):
                linear = found["blocks"][index]["linears"][name]
                where = f"config: run {run.name!r}: in the model {model}, block {index}, {name}"
                pattern.check(linear["columns"], where, rows=linear["rows"])
                pruned += 1
    if not pruned:
        raise GrampruneError(f"config: run {run.name!r}: sparsity: every linear of the model {model} stays dense.")
    if run.bias == "compensated" and not any(
        set(block["biases"]) & set(names) for block, names in zip(found["blocks"], linears, strict=True)
    ):
        raise GrampruneError(
            f"config: run {run.name!r}: bias: no linear of the model {model} that is pruned has a bias; leave it out."
        )
    if run.allocated:
        check_allocation(found, model, chosen, run)


def check_allocation(found: dict[str, Any], model: str, chosen: Settings, run: Run) -> None:
    """Raises GrampruneError for an allocation that a run cannot have in a model with this layout."""
    where = f"config: run {run.name!r}: allocation: "
    blocks = pipeline.fractions_of(run, found, chosen.exclude)
    if not any(blocks):
        raise GrampruneError(f"{where}no linear of the model {model} has a fraction of zeros; leave it out.")
    if run.allocation.method == "file":
        try:
            given = allocations.from_file(run.allocation.path, blocks)
        except GrampruneError as error:
            raise GrampruneError(f"{where}in the model {model}, {error}") from error
        for index, fractions in enumerate(given):
            for name, fraction in fractions.items():
                linear = found["blocks"][index]["linears"][name]
                place = f"{where}in the model {model}, block {index}, {name}"
                Pattern.parse(fraction, run.granularity).check(linear["columns"], place, rows=linear["rows"])


def check_results(chosen: Settings, written_in: Iterable[Path | str] = (), claim: bool = True) -> None:
    """Make the folder of results one of ours, or only see whether it can be, unless `claim`.

    Raises GrampruneError for one that cannot be written, or where something of the user's would be overwritten.
    """
    folder = Path(chosen.results)
    try:
        real = folder.resolve()
        home = Path(os.path.expanduser("~"))
        for place, what in ((Path(real.anchor), "the root of the file system"), (home, "your home folder")):
            if real == place.resolve():
                raise GrampruneError(f"config: results: {folder} is {what}; choose a folder in it.")
        existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise GrampruneError(f"config: results: {existing} is not a folder; choose another place.")
        if not os.access(existing, os.W_OK):
            reason = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(reason, os.strerror(reason))
        _check_inputs(chosen, real, written_in)
        _check_places(chosen, folder)
        if claim:
            files.claim(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise GrampruneError(
            f"config: results: {folder} could not be written: {getattr(error, 'strerror', error)}; make its folder "
            "writable, or choose another."
        ) from error


def _check_inputs(chosen: Settings, results: Path, written_in: Iterable[Path | str]) -> None:
    """Raises GrampruneError for something of the user's where outputs are written, and for the other way round."""
    sources = {f"model {model.name}": model.source for model in chosen.model}
    for name, path in {"results": chosen.results, **sources, **chosen.inputs}.items():
        if (variable := re.search(r"\$\{?[A-Za-z_]\w*\}?", path)) and not os.path.lexists(path):
            raise GrampruneError(
                f"config: {name}: {variable[0]} in {path!r} stays as it is: variables are not read here; write out the "
                "path, in which ~ may stand for your home folder."
            )
    written = outputs.taken()["model"] | {model.name for model in chosen.model}
    for name, path in [*chosen.inputs.items(), *(("the configuration", str(path)) for path in written_in)]:
        real = Path(path).resolve()
        if real in (results, *results.parents):
            raise GrampruneError(
                f"config: results: {chosen.results} lies in {path} ({name}), which is only read; choose another."
            )
        if results in real.parents and real.relative_to(results).parts[0] in written:
            raise GrampruneError(
                f"config: results: {chosen.results} would be written over {path} ({name}); choose another folder of "
                "results, or move the input."
            )


def _check_places(chosen: Settings, results: Path) -> None:
    """Raises GrampruneError if something that we have not made is where results are to be written."""
    models = [model.name for model in chosen.model]
    known = results.is_dir() and any(_is_layout(path) for path in results.glob("*/layout.json"))
    files.check_places(
        results, () if known else {*outputs.taken()["model"], *models}
    )  # the mark may be lost by copying
    for place in (results / name for name in models):
        ours = any(os.path.lexists(place / name) for name in ("layout.json", "model.json"))
        if os.path.lexists(place) and not ours and not (place.is_dir() and not any(place.iterdir())):
            raise GrampruneError(
                f"config: {place} is in the way: gramprune has not made it, and would write there; give the model "
                "another `name`, or move it."
            )


def _is_layout(path: Path) -> bool:
    """Whether a file is what we keep of a model while planning."""
    with suppress(GrampruneError, TypeError):
        return {"key", "source", "blocks"} <= set(files.read_json(path))
    return False


def check_include_path(folder: str | None, place: int) -> None:
    """Raises GrampruneError for a folder of task definitions that has none."""
    if folder is not None and not any(Path(folder).rglob("*.yaml")):
        raise GrampruneError(
            f"config: evaluation.tasks[{place}].include_path: the folder {folder} has no task definition (.yaml); "
            "give a folder that has."
        )


def check_texts(chosen: Settings) -> None:
    """Raises GrampruneError for the first local text that cannot be what it is used for."""
    for name in dict.fromkeys(name for _, name in chosen.dataset_uses):
        check_text(chosen, name)


def check_text(chosen: Settings, name: str) -> None:
    """Raises GrampruneError for a local text that cannot be what it is used for, as far as its beginning tells.

    That is what is missing, of no known format, without a document, or certainly too short: a token is a byte at least.
    """
    dataset = chosen.all_datasets[name]
    if not dataset.path:
        return
    kind = read.kind_of(dataset.source_settings, name)
    if kind == "messages":
        check_chat_templates(chosen, name)
    paths = [Path(path) for path in dataset.paths]
    if kind != "text" or any(path.suffix.lower() in (".parquet", *formats.COMPRESSED) for path in paths):
        return
    size = sum(path.stat().st_size for path in paths)
    for count, length, stride in _windows_of(chosen, name):
        text = length - 1  # BOS is none
        if size < text + (count - 1) * min(stride, text):
            raise GrampruneError(
                f"config: the dataset {name} ({', '.join(dataset.paths)}) has {size:,} bytes, too little text for "
                f"the {length + (count - 1) * stride:,} tokens that are asked for (samples or windows × length); "
                "give more text or ask for less."
            )


def _windows_of(chosen: Settings, name: str) -> Iterator[tuple[int, int, int]]:
    """How many windows of a text are asked for, their length, and from one to the next, for each of its uses."""
    calibration, perplexity = chosen.calibration, chosen.evaluation.perplexity
    if name in calibration.shares:
        yield calibration.shares[name], calibration.length, calibration.length
    for text in perplexity.datasets:
        if text.dataset == name:
            yield text.windows or perplexity.windows or 1, perplexity.length, perplexity.stride or perplexity.length


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
