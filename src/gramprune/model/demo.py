"""The embedded models: small ones of three families, trained here on text that every Python installation carries.

`model: demo`, `demo-experts` and `demo-mamba` need no download. `train` fits a byte-level BPE tokenizer and an ordinary
model of transformers to the texts that it is given, and saves a usual Hugging Face folder. A model with random weights
would not do: every pruning method would give it the same perplexity. These are trained until magnitude, Wanda and ADMM
are clearly apart.

`demo` is a Llama: 262,720 parameters in 4 blocks of width 64 see 1.4 million tokens, a good minute on 2 cores. A model
of width 96 gets little better in that time, and its redundancy hides the methods' differences: Wanda was only
1-2 % ahead of magnitude. The vocabulary of 512 keeps embedding and head at a quarter of the parameters. Longer
training sets the methods further apart: after 2,400 steps wanda is 7 % ahead of magnitude at 50 %, after 1,400 it is
5 %.

`demo-experts` is a Qwen3 with 16 experts in the place of each MLP, of which a token goes to 4: 709,312 parameters, of
which as many work for a token as in `demo`. `demo-mamba` has 182,080. Without kernels of its own Mamba goes from token
to token, and its backward pass takes time with the square of the window, so it is trained on windows of 64 tokens; on
longer ones it is no worse (perplexity 21.3 on 64 tokens, 20.8 on 256).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gramprune.errors import GrampruneError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

VOCABULARY = 512
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
# RMSNorm gains learn faster than matrices: their spread makes a layer's inputs unequal, as in large models.
# At 50 % Wanda is 6 % ahead of magnitude with it, and 3 % with 1.
GAIN_RATE = 4
WARMUP = 100
HELDOUT = 2**16  # tokens that the held-out loss is of


class Demo(NamedTuple):
    """An embedded model: what it is, and how it is trained."""

    config: dict[str, Any]
    """Its config.json, without importing torch: the workflow's graph is planned from it."""
    steps: int
    batch: int  # windows per step
    window: int  # tokens
    rate: float  # the highest learning rate of matrices
    seconds: float  # that training takes on one core, measured; the tokenizer's too

    @property
    def tokens(self) -> int:
        """How many it is trained on."""
        return self.steps * self.batch * self.window


COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
}
ATTENTION = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
}
DEMOS = {
    "demo": Demo(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "intermediate_size": 192,
            "mlp_bias": False,
            **ATTENTION,
            **COMMON,
        },
        steps=1400,
        batch=4,
        window=256,
        rate=8e-3,
        seconds=100,
    ),
    "demo-experts": Demo(
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            **ATTENTION,
            **COMMON,
        },
        steps=700,
        batch=4,
        window=256,
        rate=8e-3,
        seconds=100,
    ),
    "demo-mamba": Demo(
        {
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "state_size": 4,
            "time_step_rank": 8,
            **COMMON,
        },
        steps=1000,
        batch=8,
        window=64,
        rate=8e-3,
        seconds=180,
    ),
}


def train(
    folder: Path,
    name: str,  # of DEMOS
    texts: list[str],
    heldout: list[str],
    seed: int = 0,
    steps: int | None = None,
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
    | heldout_loss | mean loss on the first 65,536 held-out tokens, in windows as in training |
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    demo = DEMOS[name] if steps is None else DEMOS[name]._replace(steps=steps)
    if demo.steps < 1:
        raise GrampruneError(f"The model {name} was asked to train for {steps} steps; give at least 1.")
    began = time.monotonic()
    report(f"{name}: tokenizer from {len(texts)} texts, {sum(map(len, texts)) / 1e6:.1f} million characters")
    tokenizer = _tokenizer(texts)
    stream = _stream(tokenizer, texts)

    generator = torch.Generator().manual_seed(seed)
    model = _model(demo.config, generator)
    optimizer = _optimizer(model, demo.rate)
    window = torch.arange(demo.window + 1)
    warmup = max(1, min(WARMUP, demo.steps // 10))
    losses: list[float] = []
    started = reported = time.monotonic()
    for step in range(demo.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, demo.steps, warmup)
        starts = torch.randint(len(stream) - demo.window, (demo.batch, 1), generator=generator)
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
            left = (now - started) / (step + 1) * (demo.steps - step - 1)
            report(f"{name}: step {step + 1} of {demo.steps}, loss {recent:.3f}, {left:.0f} s left")

    model.eval()
    heldout_loss = _heldout_loss(model, _stream(tokenizer, heldout), demo.window)
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
    last = losses[-max(1, demo.steps // 10) :]
    result = {
        "steps": demo.steps,
        "tokens": demo.tokens,
        "seconds": round(time.monotonic() - began, 1),
        "parameters": model.num_parameters(),
        "loss": sum(last) / len(last),
        "heldout_loss": heldout_loss,
    }
    report(
        f"{name}: trained in {result['seconds']:.0f} s, loss {result['loss']:.3f},"
        f" held-out perplexity {math.exp(heldout_loss):.2f}"
    )
    return result


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


def _model(config: dict[str, Any], generator: torch.Generator) -> PreTrainedModel:
    """The model with fresh weights, drawn from `generator` only."""
    import torch
    from transformers import AutoConfig

    from gramprune.model.loading import model_class

    parsed = AutoConfig.for_model(**config)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        model = model_class(parsed)._from_config(parsed, dtype=torch.float32, experts_implementation="eager")
    depth = 2 * parsed.num_hidden_layers
    for name, parameter in model.named_parameters():
        if not _is_matrix(name, parameter):
            continue
        # A small embedding makes the model lean on its blocks: with 0.2 it was 3 % better, but at 50 % Wanda
        # was only 1-2 % ahead of magnitude.
        scale = 0.02 if "embed" in name else parameter.shape[-1] ** -0.5
        if name.removesuffix(".weight").endswith(("o_proj", "down_proj", "out_proj")):
            scale *= depth**-0.5  # the sum over the residual branches keeps unit size
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model.train()


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether it is multiplied with vectors: Mamba's convolutions and rates of decay stay as the family begins them."""
    return parameter.dim() > 1 and not name.endswith(("conv1d.weight", "A_log"))


def _optimizer(model: PreTrainedModel, rate: float) -> torch.optim.AdamW:
    import torch

    matrices, others, gains = [], [], []
    for name, parameter in model.named_parameters():
        if "norm" in name:
            gains.append(parameter)
        elif _is_matrix(name, parameter) and "embed" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    groups = [
        {"params": matrices, "peak": rate, "weight_decay": 0.1},
        {"params": others, "peak": rate, "weight_decay": 0.0},
        {"params": gains, "peak": GAIN_RATE * rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def _schedule(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor: a linear rise, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _loss(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each window's next tokens.

    | tensor  | shape             |         |
    |---------|-------------------|---------|
    | windows | (batch, length+1) | int64   |
    | returns | ()                | float32 |
    """
    from torch.nn import functional as F

    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _heldout_loss(model: PreTrainedModel, stream: torch.Tensor, window: int) -> float:
    """Mean loss over the first windows of the held-out stream, without overlap.

    | tensor | shape    |       |
    |--------|----------|-------|
    | stream | (tokens) | int64 |
    """
    import torch

    count = min(HELDOUT, len(stream)) // window
    windows = stream[: count * window].view(count, window)
    with torch.no_grad():
        return sum(_loss(model, batch).item() * len(batch) for batch in windows.split(16)) / count
