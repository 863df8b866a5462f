"""Accuracy on tasks of lm-eval, the released package (EleutherAI/lm-evaluation-harness), used as it is.

A task is a YAML file: one of the thousands that come with lm-eval, or of a folder of one's own. Reading all of them
takes lm-eval half a minute, so one's own folder is looked at first, where the ones that are used lie is found once and
kept, and jobs read only those folders.
Few-shot examples are drawn with lm-eval's fixed seed: same tasks, same items, same prompts for every model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from gramprune.errors import GrampruneError, suggest
from gramprune.progress import Progress
from gramprune.storage import files

if TYPE_CHECKING:
    from gramprune.evaluation.asked import Logits  # which imports torch: planning does not wait for that

log = logging.getLogger(__name__)
SEED = 1234  # lm-eval's own, for the choice of examples
SHOWN = ("acc", "acc_norm", "exact_match", "f1", "mcc")
"""Metrics that a table shows, the first ones first; all are stored."""


def place(results: Path | str) -> Path:
    """Where it is kept which folders have the definitions of the tasks that are used."""
    return Path(results, "tasks.json")


def folders(
    names: Iterable[str],  # tasks, groups, tags
    include_path: str | None,
    kept: Path,  # where what was found is kept
    setting: str,  # for the error
) -> list[str]:
    """The folders with the definitions of these tasks, and of those that they consist of.

    Raises GrampruneError for a name that is neither in `include_path` nor in the installed lm-eval.
    """
    key = [version("lm_eval"), include_path, _digest(include_path)]
    known: dict[str, Any] = {}
    with suppress(GrampruneError, TypeError, ValueError):
        known = dict(files.read_json(kept))
    found = known.get(json.dumps(key), {})
    missing = [name for name in names if name not in found]
    if missing:
        found = {**found, **_search(missing, include_path, setting)}
        files.write_json(kept, {**known, json.dumps(key): found})
    return sorted({folder for name in names for folder in found[name]})


def _search(names: list[str], include_path: str | None, setting: str) -> dict[str, list[str]]:
    """Folders by name: first of those in `include_path` alone, which is quick."""
    index = own(include_path) if include_path else {}
    with suppress(KeyError):
        return {name: sorted(set(_places(name, index))) for name in names}
    looked = ", ".join(name for name in names if name not in index)
    log.info("Looking for %s among lm-eval's definitions; this takes up to half a minute, once.", looked)
    index = all_of_them(include_path)
    with suppress(KeyError):
        return {name: sorted(set(_places(name, index))) for name in names}
    unknown = next(name for name in names if name not in index)
    hint, _, _ = suggest(unknown, index).rpartition("Known:")  # there are thousands
    where = f", nor has {include_path}" if include_path else ""
    raise GrampruneError(
        f"config: {setting}: lm-eval {version('lm_eval')} has no task {unknown!r}{where}; {hint}`lm-eval ls tasks` "
        "prints all names."
    )


def _places(name: str, index: dict[str, Definition]) -> Iterator[str]:
    """Folders of a task's definition, or of all that a group or tag consists of. Raises KeyError if unknown."""
    entry = index[name]
    if entry.folder is not None:
        yield entry.folder
    for member in entry.members:
        inner = _name(member)
        if isinstance(inner, str) and inner in index and inner != name:
            yield from _places(inner, index)


def own(folder: str) -> dict[str, Definition]:
    """Tasks, groups and tags that a folder defines, as lm-eval sees them, but without importing it, which is slow.

    What cannot be read so is left out: lm-eval is asked for what is not found here.
    """
    found: dict[str, Definition] = {}
    for path in sorted(Path(folder).rglob("*.yaml"), key=Path.as_posix):
        if {"__pycache__", ".ipynb_checkpoints"} & set(path.parts):
            continue
        try:
            content = _content(path)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue
        is_group = "group" in content and "class" not in content
        name, members = content.get("group" if is_group else "task"), content.get("task") if is_group else []
        if not isinstance(name, str) or not isinstance(members, list) or name in found:
            continue
        found[name] = Definition(str(path.parent), members)
        tags = content.get("tag") if not is_group else None
        for tag in [tags] if isinstance(tags, str) else tags or []:
            found.setdefault(tag, Definition(None, [])).members.append(name)
    return found


def _content(path: Path) -> dict[str, Any]:
    """What a definition says, with what the files say that it includes. Raises ValueError if it is none."""
    content = yaml.load(path.read_bytes(), Loader=Plain)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no definition")
    above = content.pop("include", None) or []
    for name in [above] if isinstance(above, str) else above:
        content = {**_content(path.parent / name), **content}
    return content


def generating(names: list[str], folders: list[str]) -> str | None:
    """The first task, of those that are named or in a group or tag that is, that has the model generate text.

    As far as definitions say it: not of a task that is written in Python, which is seen when it is loaded.
    """
    index: dict[str, Definition] = {}
    kinds: dict[str, str] = {}
    for folder in folders:
        index = {**own(folder), **index}
        for path in Path(folder).rglob("*.yaml"):
            with suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
                content = _content(path)
                if isinstance(content.get("task"), str) and "class" not in content:
                    kinds[content["task"]] = content.get("output_type", "generate_until")
    queue = list(names)
    for name in queue:
        if kinds.get(name) == "generate_until":
            return name
        for member in index[name].members if name in index else ():
            inner = _name(member)
            queue += [inner] if isinstance(inner, str) and inner not in queue else []
    return None


def _name(member: Any) -> Any:
    """What a member of a group is called."""
    return member if isinstance(member, str) else member.get("task") or member.get("group")


def all_of_them(include_path: str | None, defaults: bool = True) -> dict[str, Definition]:
    """Tasks, groups and tags that lm-eval finds in a folder, and among its own if `defaults`."""
    return {
        name: Definition(
            None if entry.yaml_path is None else str(entry.yaml_path.parent),
            {"TAG": sorted(entry.tags), "GROUP": (entry.cfg or {}).get("task", [])}.get(entry.kind.name, []),
        )
        for name, entry in _manager([include_path] if include_path else None, defaults).task_index.items()
    }


def _digest(include_path: str | None) -> str:
    """Of the definitions in a folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(include_path).rglob("*.yaml")) if include_path else []:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _manager(paths: list[str] | None, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.api", "lm_eval.evaluator", "lm_eval.models"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return TaskManager(include_path=paths, include_defaults=defaults)


def load(names: list[str], folders: list[str]) -> dict[str, Any]:
    """The tasks with their items, as lm-eval's `evaluate` takes them. Uses the network unless HF_HUB_OFFLINE is set.

    Raises GrampruneError if items cannot be had.
    """
    manager = _manager(folders, defaults=False)
    try:
        return manager.load(names)
    except Exception as error:  # datasets and lm-eval raise a dozen kinds for what is missing or wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GrampruneError(
            f"evaluation.tasks: {', '.join(names)} could not be loaded: {reason.rstrip('.')}; check the definition and "
            "its data, and that the machine where snakemake runs has a network."
        ) from error


def described(tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of every task: version, where its items are from, how many there are, and their digest."""
    found = {}
    for name, task in tasks["tasks"].items():
        digest, count = hashlib.sha256(), 0
        for document in task.eval_docs:
            digest.update(json.dumps(document, sort_keys=True, default=str).encode())
            count += 1
        config = task.config
        source = {"path": config.dataset_path, "name": config.dataset_name, "kwargs": config.dataset_kwargs}
        found[name] = {
            "version": task.VERSION if config.metadata is None else config.metadata.get("version", task.VERSION),
            "source": {key: value for key, value in source.items() if value},
            "items": count,
            "sha256": digest.hexdigest(),
        }
    return found


def accuracy(
    network: Any,  # a causal language model of transformers; or what has its `config` and `device`, see `Suite`
    logits: Logits,  # of that model
    tokenizer: Any,
    tasks: dict[str, Any],  # as `load` gives them
    shots: int | None,  # examples in the prompt; None: as the task says
    limit: int | None,  # items per task
    batch_size: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Of every task metrics with standard errors and each item's result, and the metrics of groups.

    Raises GrampruneError for a task that does not let the number of examples be chosen.
    """
    from lm_eval.evaluator import evaluate

    from gramprune.evaluation.suite import Suite

    # As lm-eval's `simple_evaluate` does it, without its survey of the machine, which takes seconds of every job.
    for name, task in tasks["tasks"].items():
        fixed = task.config.num_fewshot
        if shots and fixed == 0:
            raise GrampruneError(
                f"evaluation.tasks: shots is {shots}, but the definition of {name} fixes it at 0; leave `shots` out."
            )
        task.set_config(key="num_fewshot", value=(fixed or 0) if shots is None else shots)
        task.set_fewshot_seed(seed=SEED)
    model = Suite(network, tokenizer, batch_size, logits)
    for request in ("loglikelihood", "loglikelihood_rolling", "generate_until"):  # no bars: `Progress` writes lines
        setattr(model, request, partial(getattr(model, request), disable_tqdm=True))
    with _counted(network, tasks, limit):
        found = evaluate(model, task_dict=tasks, limit=limit)
    results = {}
    for name in tasks["tasks"]:
        samples = found["samples"][name]
        metrics = _metrics(found["results"][name])
        results[name] = {
            "shots": found["n-shot"][name],
            "samples": found["n-samples"][name]["effective"],
            "metrics": metrics,
            "per_item": {m: [_number(s[m]) for s in samples] for m in SHOWN if m in metrics and m in samples[0]},
        }
    groups = {name: {"metrics": _metrics(found["results"][name])} for name in tasks["groups"]}
    return results, groups


@contextmanager
def _counted(network: Any, tasks: dict[str, Any], limit: int | None) -> Iterator[None]:
    """Write now and then for how many items text has been generated: those that the network has seen the prompt of."""
    items = sum(len([*islice(task.eval_docs, limit)]) for task in generative(tasks))
    if not items:
        yield
        return
    count = Progress("generated texts", items)

    def step(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs.get("input_ids") is not None and kwargs["input_ids"].shape[1] > 1:
            count.step(len(kwargs["input_ids"]))

    hook = network.register_forward_hook(step, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def generative(tasks: dict[str, Any]) -> list[Any]:
    """The tasks, of those that were loaded, that have the model generate text."""
    return [task for task in tasks["tasks"].values() if task.OUTPUT_TYPE == "generate_until"]


def needs_whole_model(setting: str, task: str) -> str:
    """The sentence for a task that cannot be streamed."""
    return (
        f"config: {setting}: {task} has the model generate text, which needs the whole model, but its memory is "
        "streamed, or auto and the model does not fit; set `memory: whole` for this entry, or leave the task out."
    )


def _metrics(found: dict[str, Any]) -> dict[str, float]:
    """lm-eval's `acc,none` as `acc`; only numbers. A filter that is not the first one stays in the name."""
    metrics: dict[str, float] = {}
    for name, value in found.items():
        metric, _, filtered = name.partition(",")
        if filtered and isinstance(value, (int, float)):
            metrics[metric if metric not in metrics else f"{metric}_{filtered}"] = float(value)
    return metrics


def _number(value: Any) -> float | None:
    """One item's result, where it is a number."""
    return round(float(value), 6) if isinstance(value, (int, float)) else None


class Definition(NamedTuple):
    """Where a task, group or tag is defined."""

    folder: str | None  # of its file; a tag has none
    members: list[Any]  # of a group or tag


class Plain(yaml.SafeLoader):
    """YAML without the functions that lm-eval's definitions name."""


Plain.add_multi_constructor("!", lambda loader, suffix, node: None)
