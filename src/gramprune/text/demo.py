"""The embedded demo model: a small Llama trained on the text that every Python installation carries.

`model: demo` needs no download. `train` fits a byte-level BPE tokenizer and an ordinary `LlamaForCausalLM`
to the standard library's sources and to Python's reference manual, and saves a usual Hugging Face folder. A
model with random weights would not do: every pruning method would give it the same perplexity. This one is
trained until magnitude, Wanda and ADMM are clearly apart.

Text: every module of the standard library is a document, and so is every topic of `pydoc_data.topics`, whose
English is one large dict. Left out are tests, tables of character codes, and parts that some distributions
ship separately or that newer Pythons lack, so that most installations train on nearly the same text. Topics
quote one another; a paragraph stays only in the longest topic that has it. Held out, by a hash of the name,
are about 9 % of the modules' text (a package or a top-level module at a time) and about 9 % of the topics'
(a topic at a time). The text is that of the running Python, so another version of Python gives another
model.

Sizes: 262,720 parameters in 4 blocks of width 64 see 1.4 million tokens, a good minute on 2 cores. A model
of width 96 gets little better in that time, and its redundancy hides the methods' differences: Wanda was only
1-2 % ahead of magnitude. The vocabulary of 512 keeps embedding and head at a quarter of the parameters. Longer
training sets the methods further apart: after 2,400 steps wanda is 7 % ahead of magnitude at 50 %, after 1,400 it is
5 %.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import sysconfig
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

VOCABULARY = 512
CONTEXT = 256
BATCH = 4
STEPS = 1400
LEARNING_RATE = 8e-3
# RMSNorm gains learn faster than matrices: their spread makes a layer's inputs unequal, as in large models.
# At 50 % Wanda is 6 % ahead of magnitude with it, and 3 % with 1.
GAIN_RATE = 4
WARMUP = 100
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
HELDOUT_WINDOWS = 256

# Not in the corpus: tests, data tables, and what some systems package separately (tkinter, idlelib) or newer
# Pythons lack (distutils, lib2to3).
SKIPPED = {
    "__pycache__",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tests",
    "tkinter",
    "turtle.py",
    "turtledemo",
}
SHORTEST = 400
HELDOUT_SHARE = 0.09
# The hash's salt, chosen so that no single package dominates the held-out text.
SALT = "462"


def config() -> dict[str, Any]:
    """The model's config.json, without importing torch: the workflow's graph is planned from it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
    }


def documents(heldout: bool) -> list[str]:
    """The corpus's texts, one per module or topic: the held-out ones, or those to train and calibrate on.

    They come in the order of their names' hashes, so that any beginning of the list is a mixture of subjects.
    """
    return [document.text for document in _corpus() if document.heldout == heldout]


def cloze(items: int = 400) -> list[dict[str, Any]]:
    """Items of a cloze task from the held-out texts: which of four words comes next?

    `context` (240 characters), four `choices` (words of the same text that begin alike; only the right one was in the
    context before) and `gold`, its place. Without the context one is right once in four.
    `workflow/tasks/demo_cloze.jsonl` holds them.
    """
    generator = random.Random(0)
    texts = [text for text in documents(heldout=True) if len(text) > 4000]
    seen = "\n".join(documents(heldout=False))
    found: list[dict[str, Any]] = []
    while len(found) < items:
        text = generator.choice(texts)
        words = [word for word in re.finditer(r" [A-Za-z]{3,}", text) if word.start() >= 240]
        word = generator.choice(words)
        context = text[word.start() - 240 : word.start()]
        others = sorted({other[0] for other in words if other[0][:2] == word[0][:2] and other[0] not in context})
        # Licences and the like are in many modules.
        if word[0] in context and len(others) >= 3 and context + word[0] not in seen:
            choices = generator.sample([word[0], *generator.sample(others, 3)], 4)
            found.append({"context": context, "choices": choices, "gold": choices.index(word[0])})
    return found


def train(
    folder: Path,
    seed: int = 0,
    steps: int = STEPS,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train the tokenizer and the model, and save both as a Hugging Face folder.

    The same seed gives the same bits on the same machine, Python and number of torch threads; no global
    random state is changed. Runs on the CPU.

    | returned     |                                                                        |
    |--------------|------------------------------------------------------------------------|
    | steps        | optimizer steps                                                        |
    | tokens       | tokens trained on                                                      |
    | seconds      | wall time from start to saved folder                                   |
    | parameters   | size of the model                                                      |
    | loss         | training loss, mean of the last tenth of the steps                     |
    | heldout_loss | mean loss on the first 256 windows of 256 held-out tokens              |
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    if steps < 1:
        from gramprune.errors import GrampruneError

        raise GrampruneError(f"The demo model was asked to train for {steps} steps; give at least 1.")
    began = time.monotonic()
    texts = documents(heldout=False)
    report(f"demo: tokenizer from {len(texts)} texts, {sum(map(len, texts)) / 1e6:.1f} million characters")
    tokenizer = _tokenizer(texts)
    stream = _stream(tokenizer, texts)

    generator = torch.Generator().manual_seed(seed)
    model = _model(generator)
    optimizer = _optimizer(model)
    window = torch.arange(CONTEXT + 1)
    warmup = max(1, min(WARMUP, steps // 10))
    losses: list[float] = []
    started = reported = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, steps, warmup)
        starts = torch.randint(len(stream) - CONTEXT, (BATCH, 1), generator=generator)
        loss = _loss(model, stream[starts + window])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        now = time.monotonic()
        if now - reported >= 5:
            reported = now
            recent = sum(losses[-50:]) / len(losses[-50:])
            left = (now - started) / (step + 1) * (steps - step - 1)
            report(f"demo: step {step + 1} of {steps}, loss {recent:.3f}, {left:.0f} s left")

    model.eval()
    heldout_loss = _heldout_loss(model, _stream(tokenizer, documents(heldout=True)))
    # Never in the model's config: there a padding token would freeze its row of the embedding.
    model.generation_config.pad_token_id = END_OF_TEXT_ID
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    last = losses[-max(1, steps // 10) :]
    result = {
        "steps": steps,
        "tokens": steps * BATCH * CONTEXT,
        "seconds": round(time.monotonic() - began, 1),
        "parameters": model.num_parameters(),
        "loss": sum(last) / len(last),
        "heldout_loss": heldout_loss,
    }
    report(
        f"demo: trained in {result['seconds']:.0f} s, loss {result['loss']:.3f},"
        f" held-out perplexity {math.exp(heldout_loss):.2f}"
    )
    return result


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, in every process (Python's `hash` is salted)."""
    return int.from_bytes(hashlib.sha256(f"{SALT}/{name}".encode()).digest()[:8], "big") / 2**64


@cache
def _corpus() -> list[_Document]:
    found = []
    for name, text in _modules().items():
        unit = name.partition(".")[0]  # a package is held out as a whole
        found.append(_Document(name, text, _hash(unit) < HELDOUT_SHARE))
    for name, text in _topics().items():
        found.append(_Document(f"topic {name}", text, _hash(f"topic {name}") < HELDOUT_SHARE))
    return sorted(found, key=lambda document: (_hash(document.name), document.name))


def _modules() -> dict[str, str]:
    """The sources of the standard library's modules, by dotted name."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for directory, children, files in os.walk(root):
        # site-packages, config-3.11-... and the like are no packages.
        children[:] = sorted(name for name in children if name.isidentifier() and name not in SKIPPED)
        for file in sorted(files):
            if not file.endswith(".py") or file in SKIPPED or file.startswith("_sysconfigdata"):
                continue
            path = Path(directory, file)
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) >= SHORTEST and not _is_table(text):
                texts[".".join(path.relative_to(root).with_suffix("").parts)] = text
    if len(texts) < 100:
        from gramprune.errors import GrampruneError

        raise GrampruneError(
            f"The demo model is trained on the standard library's sources, but {root} holds only {len(texts)}"
            " modules as .py files; use a Python installed with its sources, or name another model."
        )
    return texts


def _is_table(text: str) -> bool:
    """Whether a source is a table of character codes: more than a tenth digits and backslashes."""
    return sum(map(text.count, "0123456789\\")) > 0.1 * len(text)


def _topics() -> dict[str, str]:
    """The topics of Python's reference manual, each paragraph only in the longest topic that has it."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        from gramprune.errors import GrampruneError

        raise GrampruneError(
            "The demo model is trained on the manual's topics, but this Python has no pydoc_data.topics;"
            " install Python's full standard library, or name another model."
        ) from error

    texts = {}
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        kept = []
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            key = " ".join(paragraph.split())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        text = "\n\n".join(kept).strip() + "\n"
        if len(text) >= SHORTEST:
            texts[name] = text
    return texts


def _tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer; the end-of-text token has index 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one row of tokens, an end-of-text token before each.

    | tensor  | shape    |       |
    |---------|----------|-------|
    | returns | (tokens) | int64 |
    """
    import torch

    ids: list[int] = []
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        ids.append(END_OF_TEXT_ID)
        ids.extend(encoding.ids)
    return torch.tensor(ids)


def _model(generator: torch.Generator) -> LlamaForCausalLM:
    """The model with fresh weights, drawn from `generator` only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**config())).to(dtype=torch.float32)
    depth = 2 * model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            continue
        # A small embedding makes the model lean on its blocks: with 0.2 it was 3 % better, but at 50 % Wanda
        # was only 1-2 % ahead of magnitude.
        scale = 0.02 if "embed_tokens" in name else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale *= depth**-0.5  # the sum over the residual branches keeps unit size
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model.train()


def _optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    import torch

    matrices, embedding, gains = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            gains.append(parameter)
        elif "embed_tokens" in name:
            embedding.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "peak": LEARNING_RATE, "weight_decay": 0.1},
        {"params": embedding, "peak": LEARNING_RATE, "weight_decay": 0.0},
        {"params": gains, "peak": GAIN_RATE * LEARNING_RATE, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def _schedule(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor: a linear rise, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _loss(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each window's next tokens.

    | tensor  | shape             |         |
    |---------|-------------------|---------|
    | windows | (batch, length+1) | int64   |
    | returns | ()                | float32 |
    """
    from torch.nn import functional as F

    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _heldout_loss(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    """Mean loss over the first windows of the held-out stream, without overlap.

    | tensor | shape    |       |
    |--------|----------|-------|
    | stream | (tokens) | int64 |
    """
    import torch

    count = min(HELDOUT_WINDOWS, len(stream) // CONTEXT)
    windows = stream[: count * CONTEXT].view(count, CONTEXT)
    with torch.no_grad():
        return sum(_loss(model, batch).item() * len(batch) for batch in windows.split(16)) / count


class _Document(NamedTuple):
    name: str
    text: str
    heldout: bool
