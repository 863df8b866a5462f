"""A configuration to begin with: short, commented, and chosen from what can be seen of a model and this machine."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.experiment import checks, configfile, pipeline, plan, settings
from gramprune.experiment.names import slug
from gramprune.experiment.recipes import SAID
from gramprune.model import layout
from gramprune.model import source as model_source
from gramprune.progress import duration
from gramprune.text import read

C4 = {"hub": "allenai/c4", "files": "en/c4-train.00000-of-01024.json.gz", "documents": 20000}
WIKITEXT = {"hub": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "split": "test"}
DEMO = {"calibration": "demo", "evaluation": "demo_heldout"}
LENGTH = 2048  # tokens, as in the papers
SAMPLES = 128  # as in the papers
GIB = 2**30


@dataclass(frozen=True)
class Chosen:
    """A value, and the reason for it."""

    value: Any
    reason: str


def configuration(
    model: str,  # a folder, a hub id or an embedded one, such as demo
    sparsity: list[str],  # such as 0.5 or 2:4
    text: str | None = None,  # a local file to calibrate on; "c4"; by default C4, and the demo's own for the demo
    evaluation: str | None = None,  # a local file to measure perplexity on; by default WikiText-2
    recipes: tuple[str, ...] = ("wanda", "fast", "best"),
) -> str:
    """config.yaml as text. Raises GrampruneError for a model, a text or a sparsity that cannot be."""
    source = settings.model_of(model)
    found = layout.describe(model_source.config(source.kind, source.location, None))
    length = _length(found)
    samples = _samples(found, length.value)
    texts, uses = _texts(source, text, evaluation)
    patterns = [value if ":" in value else float(value) if _is_number(value) else value for value in sparsity]
    content: dict[str, Any] = {
        "model": model,
        **({"datasets": texts} if texts else {}),
        "calibration": {"dataset": uses["calibration"], "samples": samples.value, "length": length.value},
        "evaluation": {"perplexity": {"datasets": [uses["evaluation"]], "length": length.value}},
        "runs": [{"recipe": [*recipes], "sparsity": patterns}],
        "results": f"results/{slug(source.name)}",
    }
    keep = _keep(content, source.name, found)
    content |= {"keep": keep.value}
    parsed = settings.load(content)
    checks.check_model(found, source.name, parsed)
    for name in texts:
        if parsed.datasets[name].path:
            read.kind_of(parsed.datasets[name].source_settings, name)
    return _written(content, {"length": length, "samples": samples, "keep": keep}, found, parsed, source, text)


def _length(found: dict[str, Any]) -> Chosen:
    """Tokens per sequence and window."""
    context = found["context"]
    if context and context < LENGTH:
        return Chosen(context, f"all of the model's context of {context:,} tokens")
    of = f"of the model's context of {context:,}" if context else "for a model without a fixed context"
    return Chosen(LENGTH, f"tokens, as in the papers, {of}; memory and time grow with it")


def _samples(found: dict[str, Any], length: int) -> Chosen:
    """Sequences: as many as in the papers, or with which an expert sees as many tokens as it has inputs, on average."""
    experts = [each for block in found["blocks"] for each in block["linears"].values() if "experts" in each]
    if not experts:
        return Chosen(SAMPLES, "sequences, as in the papers; more help every method")
    sparest = max(experts, key=lambda linear: linear["columns"] * linear["experts"] / linear["active"])
    share = sparest["active"] / sparest["experts"]
    value = max(SAMPLES, ceil(sparest["columns"] / share / length))
    tokens = f"an expert of {sparest['columns']:,} inputs sees {share * value * length:,.0f} tokens, on average"
    return Chosen(value, f"sequences; {tokens}, and more help it")


def _texts(source: Any, text: str | None, evaluation: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The datasets, and which is used for what."""
    if source.kind == "demo" and not text and not evaluation:
        return {}, DEMO
    found: dict[str, Any] = {}
    for name, given, usual in (("calibration", text, C4), ("evaluation", evaluation, WIKITEXT)):
        if given and given != "c4" and not Path(given).expanduser().exists():
            raise GrampruneError(f"{given} does not exist; give a file of text, or leave it out.")
        found[name] = {"path": given} if given and given != "c4" else usual
    return found, {name: name for name in found}


def _keep(content: dict[str, Any], name: str, found: dict[str, Any]) -> Chosen:
    """What stays on disk: as much as half of what is free has room for."""
    parsed = settings.load(content)
    needed = plan.kept_bytes(pipeline.jobs(parsed, {name: found}))
    folder = next(path for path in Path(parsed.results).absolute().parents if path.exists())
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    for keep in ("all", "gram", "results"):
        if needed[keep] <= free / 2:
            break
    return Chosen(keep, f"takes {needed[keep] / GIB:.1f} GiB; {free / GIB:,.0f} GiB are free")


def _written(
    content: dict[str, Any],
    why: dict[str, Chosen],
    found: dict[str, Any],
    parsed: settings.Settings,
    source: Any,
    text: str | None,
) -> str:
    """The configuration with its reasons beside it."""
    hours = sum(job.need.seconds("cpu", 1) for job in pipeline.jobs(parsed, {source.name: found}).values())
    lines = [
        f"# {source.name}: {layout.summary(found, [])}",
        f"# {counted(len(parsed.runs))} and the dense model: about {duration(hours)} of work for one CPU core.",
        "# What it takes elsewhere:   gramprune plan THIS.yaml",
        "# To run it:                 snakemake --profile local --configfile THIS.yaml",
        "# Every key is explained in docs/configuration.md.",
        "",
        f"model: {_inline(content['model'])}",
        "",
    ]
    if "datasets" in content:
        lines.append("datasets:")
        lines += [f"  {name}: {_inline(dataset)}" for name, dataset in content["datasets"].items()]
        lines.append("")
    chat = source.kind == "folder" and (Path(source.location) / "chat_template.jinja").exists()
    if chat and text in (None, "c4"):
        lines.append(
            "# This model has a chat template: calibrate it on conversations (rows with `messages`) if you have some."
        )
    calibration = content["calibration"]
    lines += [
        "calibration:",
        f"  dataset: {calibration['dataset']}",
        f"  samples: {calibration['samples']}     # {why['samples'].reason}",
        f"  length: {calibration['length']}    # {why['length'].reason}",
        "  bos: auto        # begins every sequence with the token that the tokenizer puts in front of texts, if any",
        "",
        "# The dense model is measured beside every run. Tasks of lm-eval: `tasks: [arc_easy, piqa]`.",
        "evaluation:",
        f"  perplexity: {_inline(content['evaluation']['perplexity'])}",
        "",
        "# A list stands for a run per value, two lists for all combinations.",
    ]
    lines += [f"#   {name}: {said}" for name, said in SAID.items() if name in content["runs"][0]["recipe"]]
    lines += [
        "runs:",
        f"  - {_inline(content['runs'][0])}",
        "",
        f"keep: {content['keep']}    # {why['keep'].reason}",
        f"results: {_inline(content['results'])}",
    ]
    written = "\n".join(lines) + "\n"
    assert settings.load(configfile.parsed(written, "the configuration")) == parsed
    return written


def counted(runs: int) -> str:
    """How many runs, in words."""
    return f"{runs} run{'s' * (runs != 1)}"


def _inline(value: Any) -> str:
    """A value as YAML on one line; texts in quotes where they are not plain."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    plain = isinstance(value, str) and all(c.isalnum() or c in "._-/" for c in value) and value[:1].isalpha()
    return value if plain else json.dumps(value, ensure_ascii=False)


def _is_number(text: str) -> bool:
    try:
        return bool(float(text))
    except ValueError:
        return False
