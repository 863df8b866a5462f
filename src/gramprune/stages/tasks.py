"""Tasks of lm-eval: their items are fetched once, then every checkpoint is evaluated on them without a network."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.evaluation import zeroshot
from gramprune.evaluation.record import write_evaluation
from gramprune.model.manifest import manifest_of
from gramprune.storage import files


def fetch_tasks(output: Path, results: Path, settings: dict[str, Any], code: str) -> str:
    """Have the items of some tasks on this machine, and write what they are.

    settings: tasks, include_path.
    """
    names, include_path = settings["tasks"], settings["include_path"]
    folders = zeroshot.folders(names, include_path, zeroshot.place(results), "evaluation.tasks")
    tasks = zeroshot.load(names, folders)
    found = zeroshot.described(tasks)
    content = {"tasks": found, "folders": folders, "lm_eval": version("lm_eval")}
    files.write_json(output, {**content, "settings": settings, "code": code})
    return ", ".join(f"{name}: {task['items']:,} items" for name, task in found.items())


def evaluate_tasks(
    model: Path,  # manifest of the dense model
    checkpoint: Path | None,  # folder of a pruned one; None: the dense model itself
    tasks: Path,  # that `fetch_tasks` wrote
    output: Path,
    settings: dict[str, Any],  # name, tasks, shots, limit, dtype
    code: str,
    device: str,
    batch_size: int | str,  # items, or "auto"
    memory: str,  # whole or streamed
) -> str:
    """Write metrics, standard errors, every item's result and what they depend on as JSON.

    Raises GrampruneError if the items are not those that were fetched, and for what cannot be streamed.
    """
    from gramprune.model.logits import open_logits

    started, device = time.monotonic(), machine.device(device)
    batch_size = machine.batch(batch_size, machine.ITEM, device)
    manifest, fetched = manifest_of(model), files.read_json(tasks)
    folder = Path(checkpoint or manifest["folder"])
    loaded = zeroshot.load(settings["tasks"], fetched["folders"])
    for name, task in zeroshot.described(loaded).items():
        expected = fetched["tasks"].get(name, {}).get("sha256")
        if task["sha256"] != expected:
            raise GrampruneError(
                f"the items of task {name} have the digest {task['sha256'][:16]}, but {str(expected)[:16]} was "
                f"fetched: they have changed; delete {tasks} to have all models evaluated on the same."
            )
    if memory == "streamed" and (texts := zeroshot.generative(loaded)):
        raise GrampruneError(zeroshot.needs_whole_model("evaluation.tasks", texts[0].config.task))
    scratch = Path(output).with_suffix(".hidden")
    opened = open_logits(folder, settings["dtype"], device, memory == "streamed", scratch, "tasks")
    model, logits, tokenizer, dtype = opened
    how = settings["shots"], settings["limit"], batch_size
    results, groups = zeroshot.accuracy(model, logits, tokenizer, loaded, *how)
    figures = {
        "name": settings["name"],
        "tasks": {name: {**fetched["tasks"][name], **result} for name, result in results.items()},
        "groups": groups,
        "lm_eval": version("lm_eval"),
    }
    write_evaluation(output, figures, manifest, settings, code, started, device, dtype, batch_size, memory)
    shown = {name: [m for m in zeroshot.SHOWN if m in result["metrics"]] for name, result in results.items()}
    return ", ".join(f"{name} {m} {results[name]['metrics'][m]:.4f}" for name, found in shown.items() for m in found)
