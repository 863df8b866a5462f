"""Where everything is in a folder of results: the files that each job makes, and so the names that are taken there."""

from __future__ import annotations

from functools import cache
from typing import Any

TABLES = ("summary.csv", "summary.parquet", "summary.md", "summary.tex", "layers.parquet", "experiment.json")
PLANNED = ("tasks.json", "{model}/layout.json")  # kept while planning
TARGETS = ("plan", "status", "tidy")  # make nothing but a log


def stem(key: tuple[Any, ...]) -> str:
    """What a job's log and its record of what it took are called in the folder of logs, without their endings."""
    stage, *rest = key
    match stage, rest:
        case "fetch_data", [name]:
            return f"data/{name}"
        case "fetch_tasks", [name]:
            return f"data/tasks/{name}"
        case "capture" | "update" | "reconstruct", [model, trail, block]:
            return f"{model}/{trail}/{_block(block)}/{stage}"
        case "allocate", [model, name]:
            return f"{model}/dense/allocate_{name}"
        case "mask" | "refine", [model, trail, block, name]:
            return f"{model}/{trail}/{_block(block)}/{stage}_{name}"
        case "perplexity" | "tasks", [model, run, name]:
            return f"{model}/{run}/{stage}_{name}"
    return "/".join([*rest, stage])


def made(key: tuple[Any, ...]) -> list[str]:
    """The files, or folders of files, that a job makes besides its log."""
    stage, *rest = key
    match stage, rest:
        case "fetch_model", [model]:
            return [f"{model}/model.json", f"{model}/model"]  # the folder: of the demo
        case "fetch_data", [name]:
            return [f"data/{name}.parquet"]
        case "fetch_tasks", [name]:
            return [f"data/tasks/{name}.json"]
        case "calibrate", [model]:
            return [f"{model}/calibration.safetensors"]
        case "capture", [model, trail, block]:
            return [f"{model}/{trail}/{_block(block)}/{name}" for name in ("inputs.safetensors", *_both("gram"))]
        case "allocate", [model, name]:
            return [f"{model}/dense/allocations/{name}.json"]
        case "mask" | "refine", [model, trail, block, name]:
            return [f"{model}/{trail}/{_block(block)}/masks/{name}" for name in _both(name)]
        case "update", [model, run, block]:
            return [f"{model}/{run}/{_block(block)}/{name}" for name in _both("weights")]
        case "reconstruct", [model, run, block]:
            return [f"{model}/{run}/{_block(block)}/{name}" for name in _both("reconstructed")]
        case "assemble", [model, run]:
            return [f"{model}/{run}/checkpoint", f"{model}/{run}/.gramprune"]
        case "perplexity" | "tasks", [model, run, name]:
            return [f"{model}/{run}/evaluation/{stage}_{name}.json"]
        case "summary", []:
            return [*TABLES]
        case "report", []:
            return ["report.html", "pictures"]
    return []


@cache
def taken() -> dict[str, set[str]]:
    """Names that no `model` and no `run` may have, as files and folders of ours lie beside theirs."""
    blocks = [("{model}", trail, 0) for trail in ("dense", "{run}")]
    keys: list[tuple[Any, ...]] = [("fetch_data", "{}"), ("fetch_tasks", "{}"), ("fetch_model", "{model}")]
    keys += [("calibrate", "{model}"), ("assemble", "{model}", "{run}"), ("perplexity", "{model}", "{run}", "{}")]
    keys += [("capture", *block) for block in blocks] + [("mask", *block, "{}") for block in blocks]
    keys += [("update", *blocks[1]), ("summary",), ("report",), *((target,) for target in TARGETS)]
    files = [*PLANNED, *(file for key in keys for file in made(key))]
    files += [f"logs/{stem(key)}{ending}" for key in keys for ending in (".log", ".json")]
    found: dict[str, set[str]] = {"model": set(), "run": set()}
    for first, *rest in (file.split("/") for file in files):
        inside = rest if first == "logs" else [first, *rest]
        found["model"] |= {first, inside[0]} - {"{model}"}
        if inside[0] == "{model}":
            found["run"] |= {inside[1]} - {"{run}"}
    return found


def _block(block: int) -> str:
    return f"block_{block:03d}"


def _both(name: str) -> tuple[str, str]:
    """A file of tensors, and what was measured while it was made."""
    return f"{name}.safetensors", f"{name}.json"
