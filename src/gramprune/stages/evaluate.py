"""Perplexity of a checkpoint folder, pruned or dense, on one dataset."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.evaluation.perplexity import digest, perplexity, windows
from gramprune.evaluation.record import write_evaluation
from gramprune.model.loading import vocabulary_of
from gramprune.model.logits import open_logits
from gramprune.model.manifest import manifest_of
from gramprune.text.store import Documents
from gramprune.text.tokens import Tokens


def evaluate_perplexity(
    model: Path,  # manifest of the dense model
    checkpoint: Path | None,  # folder of a pruned one; None: the dense model itself
    dataset: Path,
    output: Path,
    settings: dict[str, Any],  # dataset, separator, length, stride, windows, bos, dtype
    code: str,
    device: str,
    batch_size: int | str,  # windows, or "auto"
    memory: str,  # whole or streamed
) -> str:
    """Write perplexity, windows, tokens and what they depend on as JSON; return the perplexity for people."""
    started, device = time.monotonic(), machine.device(device)
    batch_size = machine.batch(batch_size, settings["length"], device)
    manifest = manifest_of(model)
    folder = Path(checkpoint or manifest["folder"])
    scratch, streamed = Path(output).with_suffix(".hidden"), memory == "streamed"
    opened = open_logits(folder, settings["dtype"], device, streamed, scratch, "perplexity")
    documents = Documents(dataset)
    texts = Tokens(documents, opened.tokenizer, vocabulary_of(folder), settings["bos"], settings["separator"])
    length = settings["length"] - len(texts.front)  # of text
    if length < 1:
        raise GrampruneError(f"evaluation.perplexity.length is {settings['length']}: there is no room for text.")
    stride, name = min(settings["stride"], length), settings["dataset"]
    cut = windows(texts.stream(), length, stride, settings["windows"], name)
    result = perplexity(opened.logits, cut, stride, batch_size, texts.front)
    figures = {"dataset": name, **result, "tokens_sha256": digest(cut, texts.front), "data": documents.about}
    write_evaluation(output, figures, manifest, settings, code, started, device, opened.dtype, batch_size, memory)
    return f"perplexity {result['perplexity']:.4f}"
