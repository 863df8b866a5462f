"""Perplexity of a checkpoint folder, pruned or dense, on one dataset."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gramprune import files, machine, sources
from gramprune.blocks import compute_dtype
from gramprune.checkpoint import Weights
from gramprune.perplexity import perplexity, windows
from gramprune.stages.fetch import manifest_of

log = logging.getLogger(__name__)


def evaluate_perplexity(
    model: Path,  # manifest of the dense model
    checkpoint: Path | None,  # folder of a pruned one; None: the dense model itself
    dataset: Path,
    output: Path,
    settings: dict[str, Any],  # dataset, separator, length, windows, dtype
    code: str,
    device: str,
    batch_size: int,  # windows
) -> None:
    """Write perplexity, windows, tokens and what they depend on as JSON."""
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    folder = Path(checkpoint or manifest["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.model_max_length = 10**9  # the text is cut into windows by us: no warning is due
    text = settings["separator"].join(sources.read_documents(dataset))
    tokens = windows(tokenizer(text)["input_ids"], settings["length"], settings["windows"], settings["dataset"])
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    dtype = compute_dtype(settings["dtype"], config, Weights(folder))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
    result = perplexity(loaded, tokens, batch_size, device)
    log.info("%s: perplexity %.4f on %s", folder, result["perplexity"], settings["dataset"])
    files.write_json(
        output,
        {
            "dataset": settings["dataset"],
            **result,
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "device": device,
            "settings": settings,
            "code": code,
            "model": manifest,
            "data": sources.about_documents(dataset),
            "versions": files.versions(),
            "seconds": round(time.monotonic() - started, 3),
            **machine.peak_memory(),
        },
    )
