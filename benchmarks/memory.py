"""Peak memory of a block job against the size of what it must hold, for models of few and of many blocks.

    python benchmarks/memory.py                    both dtypes; minutes, and 2 GB of temporary disk
    python benchmarks/memory.py --dtype bfloat16   one of them
    python benchmarks/memory.py --experts          64 experts per block, which are stored one by one; 7 GB

Why: models that do not fit into memory can be pruned only if a job holds one block, whatever the number of blocks.
The bound: peak ≤ 1.3 × (embeddings + one block + its Gram matrices, as many as are summed at a time + one batch).

How: the stages capture, mask (wanda), update (admm) and update (joint) of a middle block, and capture of the block
after it behind pruned weights, run on random Llamas, each in a process of its own. Its peak resident memory, minus
that of a process that only imports the same modules, is the job's. The alternative, in the same run: load the whole
model with transformers and do one forward pass of one batch.

What the sum counts, in bytes of the model's dtype unless said otherwise:
    embeddings   vocabulary × width; the head is tied to them
    block        all parameters of one block
    Gram         float32 squares of the distinct inputs of the linears: q/k/v, o, gate/up, down, those of experts for
                 each of them; as many as `calibration.gram_memory` allows
    batch        batch × length tokens, each with the hidden states that enter and leave, the distinct inputs of the
                 linears, and what q, k, v, gate and up give; of experts those that a token goes to
Not counted, so the 1.3 must cover it: token ids, attention masks, rotary tables, upcasts to the Gram matrices'
float32, workspaces of the solvers, and code and threads that are first touched when work begins.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# The parent imports nothing large: on Linux a child's peak begins with what its parent had when it was started.

ROOT = Path(__file__).resolve().parents[1]
WIDTH, INNER, HEADS, KEY_HEADS, VOCABULARY, CONTEXT = 1024, 2816, 16, 8, 16384, 512
KEYS = WIDTH // HEADS * KEY_HEADS  # width of keys and of values
BATCH, BATCHES = 2, 4  # sequences of CONTEXT tokens
EXPERTS, ACTIVE, EXPERT_INNER = 64, 4, 768
ROOM = 128 * 2**20  # bytes of Gram matrices at a time, with experts; without, all have room
DEPTHS = {"llama": (6, 24), "experts": (3, 6)}
BYTES = {"float32": 4, "bfloat16": 2}
LIMIT = 1.3
MIB = 2**20
CODE = {  # imported by transformers when a model is made
    "llama": "transformers.models.llama.modeling_llama",
    "experts": "transformers.models.qwen3_moe.modeling_qwen3_moe",
}
IMPORTS = {
    "capture": ["gramprune.stages.capture"],
    "capture, pruned before": ["gramprune.stages.capture"],
    "mask": ["gramprune.stages.mask", "gramprune.pruning.masks.wanda"],
    "update": ["gramprune.stages.update", "gramprune.pruning.updates.admm"],
    "update, joint": ["gramprune.stages.update", "gramprune.pruning.joint.admm"],
    "whole model": ["torch", "transformers"],
}
EXECUTE = ("capture", "capture, pruned before", "whole model")
STAGES = [name for name in IMPORTS if name != "whole model"]
ORDER = ["capture", "mask", "update", "update, joint", "capture, pruned before", "whole model"]  # as they need files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=BYTES, help="of the model; by default both, one after the other")
    parser.add_argument("--experts", action="store_true", help="blocks with experts instead of one MLP")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return child(*chosen.child)
    model = "experts" if chosen.experts else "llama"
    inner = f"{EXPERTS} experts of {EXPERT_INNER}, {ACTIVE} active" if chosen.experts else f"MLP {INNER}"
    print(f"width {WIDTH}, {inner}, {HEADS}/{KEY_HEADS} heads, vocabulary {VOCABULARY}, {BATCH} × {CONTEXT} tokens")
    imports = {name: peak("import", f"{model} {name}", ".") for name in IMPORTS}
    print("imports alone, MiB: " + ", ".join(f"{name} {value / MIB:.0f}" for name, value in imports.items()))
    for dtype in [chosen.dtype] if chosen.dtype else BYTES:
        compare(model, dtype, imports)


def compare(model: str, dtype: str, imports: dict[str, int]) -> None:
    """Print the table of one dtype."""
    terms = expected(model, BYTES[dtype])
    total = sum(terms.values())
    peaks = {}
    # Updates go matrix by matrix, whatever the model, and take long for many experts.
    stages = [name for name in [*STAGES, "whole model"] if not (model == "experts" and name.startswith("update"))]
    for depth in DEPTHS[model]:
        with tempfile.TemporaryDirectory() as folder:
            peak("build", f"{model} {dtype} {depth}", folder)
            peaks[depth] = {name: peak("stage", name, folder) - imports[name] for name in ORDER if name in stages}
    few, many = DEPTHS[model]
    print(f"\n{dtype}: " + " + ".join(f"{name} {size / MIB:.1f}" for name, size in terms.items()), end="")
    print(f" = {total / MIB:.1f} MiB; bound {LIMIT} × that = {LIMIT * total / MIB:.1f} MiB")
    columns = [f"{few} blocks", f"{many} blocks", "ratio", "to the sum", f"≤ {LIMIT}", "whole model"]
    print(f"{'peak above imports, MiB':26}" + "".join(f"{text:>13}" for text in columns))
    for name in stages:
        first, last = peaks[few][name], peaks[many][name]
        row = [f"{first / MIB:.1f}", f"{last / MIB:.1f}", f"{last / first:.2f}", f"{last / total:.2f}"]
        row += ["yes" if max(first, last) <= LIMIT * total else "NO"] if name in STAGES else [""]
        row += [f"{peaks[many]['whole model'] / last:.1f} ×"]
        print(f"{name:26}" + "".join(f"{text:>13}" for text in row), flush=True)


def expected(model: str, width: int) -> dict[str, int]:
    """The terms of the sum in bytes. width: bytes of an element of the model's dtype."""
    attention = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS
    if model == "experts":
        inner, active = 3 * WIDTH * EXPERT_INNER * EXPERTS + WIDTH * EXPERTS, ACTIVE
        one, grams = EXPERT_INNER, min(ROOM, 4 * (2 * WIDTH**2 + EXPERTS * (WIDTH**2 + EXPERT_INNER**2)))
    else:
        inner, active = 3 * WIDTH * INNER, 1
        one, grams = INNER, 4 * (3 * WIDTH**2 + INNER**2)
    token = 2 * WIDTH + 2 * WIDTH + active * (WIDTH + one) + (WIDTH + 2 * KEYS + 2 * active * one)
    return {
        "embeddings": VOCABULARY * WIDTH * width,
        "block": (attention + inner + 2 * WIDTH) * width,
        "Gram": grams,
        "batch": BATCH * CONTEXT * token * width,
    }


def peak(kind: str, what: str, folder: str) -> int:
    """Peak resident memory in bytes of a process that does one thing in `folder`."""
    # One thread as in the jobs: every further one has buffers of its own.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, what, folder]
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)  # the peak of this child; RUSAGE_CHILDREN is the largest of all
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{kind} {what} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(kind: str, what: str, folder: str) -> None:
    """What one process does."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "workflow" / "scripts")]
    if kind == "import":
        model, _, name = what.partition(" ")
        import_module("job")
        gc.disable()  # as a job imports
        for module in [*IMPORTS[name], *([CODE[model]] if name in EXECUTE else [])]:
            import_module(module)
    elif kind == "build":
        model, dtype, depth = what.split()
        build(Path(folder), model, dtype, int(depth))
    elif what == "whole model":
        whole_model(Path(folder))
    else:
        stage(Path(folder), what)


def build(folder: Path, model: str, dtype: str, depth: int) -> None:
    """A random model in `folder`/model, written tensor by tensor, and what the first capture reads."""
    import torch
    from transformers import LlamaConfig, Qwen3MoeConfig

    from gramprune.model.loading import empty_model
    from gramprune.stages.fetch import fetch_model
    from gramprune.storage import artifacts, files, tensorfile

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "moe_intermediate_size": EXPERT_INNER}
    config = {
        "llama": lambda: LlamaConfig(**sizes, intermediate_size=INNER, architectures=["LlamaForCausalLM"]),
        "experts": lambda: Qwen3MoeConfig(**sizes, **experts, architectures=["Qwen3MoeForCausalLM"]),
    }[model]()
    config.save_pretrained(folder / "model")
    number = getattr(torch, dtype)
    torch.manual_seed(0)
    shapes = {}
    for name, parameter in empty_model(config, number).named_parameters():  # a tied head is not among them
        shape, (base, _, last) = tuple(parameter.shape), name.rpartition(".")
        if len(shape) < 3:
            shapes[name] = number, shape
            continue
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)  # on the hub every expert has its own
        one = shape[1] // len(parts), shape[2]
        shapes |= {f"{base}.{expert}.{part}.weight": (number, one) for expert in range(shape[0]) for part in parts}
    with tensorfile.writing(folder / "model" / "model.safetensors", shapes, {"format": "pt"}) as writer:
        for name, (_, shape) in shapes.items():
            writer.append(name, (torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape)).to(number))

    fetch_model(folder / "model.json", "", {"kind": "folder", "source": str(folder / "model"), "revision": None}, "")
    fingerprint = files.read_json(folder / "model.json")["fingerprint"]
    tokens = torch.randint(VOCABULARY, (BATCH * BATCHES, CONTEXT))
    hidden = torch.randn(BATCH * BATCHES, CONTEXT, WIDTH).to(number)
    about = artifacts.provenance("calibrate", {}, "", {}, model=fingerprint)
    artifacts.write(folder / "tokens", {"tokens": tokens}, about)
    # What enters the block before the middle one: random, so that no block before it need be executed.
    about = artifacts.provenance("inputs", {}, "", {}, model=fingerprint, block=depth // 2 - 1)
    artifacts.write(folder / "before", {"hidden": hidden}, about)


def stage(folder: Path, name: str) -> None:
    """One stage of the middle block, or of the one after it behind pruned weights, as workflow/scripts calls it."""
    config = json.loads((folder / "model" / "config.json").read_text())
    block, experts = config["num_hidden_layers"] // 2, config["model_type"] == "qwen3_moe"
    common = {"model": folder / "model.json", "tokens": folder / "tokens", "trail": "dense", "labels": {}}
    common |= {"device": "cpu", "metrics": folder / "metrics"}
    problem = {"options": {}, "precision": "float32", "target": {"method": "own"}}
    recipe = {"pattern": 0.5, "granularity": "row", **problem}
    if name.startswith("capture"):
        inner = ("experts.gate_up_proj", "experts.down_proj") if experts else ("gate_proj", "up_proj", "down_proj")
        linears = [f"self_attn.{letter}_proj" for letter in "qkvo"] + [f"mlp.{each}" for each in inner]
        after = name != "capture"
        job(
            "capture:capture",
            {"dtype": "auto", "accumulate": "float32", "experts": "routed", "min_tokens": 1, "linears": linears},
            room=ROOM if experts else 2**40,
            before=folder / ("inputs" if after else "before"),
            weights=folder / ("mask" if experts else "weights") if after else None,
            dense=None,
            inputs=folder / ("inputs after" if after else "inputs"),
            grams=folder / ("gram after" if after else "gram"),
            block=block + after,
            batch_size=BATCH,
            **common,
        )
    elif name == "mask":
        files = {"grams": folder / "gram", "mask": None, "output": folder / "mask"}
        job("mask:mask_block", {"method": "wanda", **recipe}, block=block, **files, **common)
    elif name == "update":
        files = {"grams": folder / "gram", "mask": folder / "mask", "output": folder / "weights"}
        job("update:update_block", {"method": "admm", **problem}, block=block, **files, **common)
    else:
        files = {"grams": folder / "gram", "mask": None, "output": folder / "joint"}
        job("update:update_block", {"method": "admm", **recipe}, block=block, **files, **common)


def job(function: str, settings: dict, **arguments: Any) -> None:
    """What a job does, with a stand-in for the object that Snakemake gives to a script."""
    from job import execute

    parameters = SimpleNamespace(settings=json.dumps(settings), code="")
    log = str(arguments["model"].parent / "log")
    given = SimpleNamespace(params=parameters, log=[log], rule=function, wildcards=[], resources={}, threads=1)
    execute(given, function, **arguments)


def whole_model(folder: Path) -> None:
    """The alternative: all blocks in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto", local_files_only=True).eval()
    with torch.no_grad():
        # The base model: logits, which no block job computes, would only make the alternative look worse.
        model.base_model(input_ids=torch.randint(VOCABULARY, (BATCH, CONTEXT)), use_cache=False)


if __name__ == "__main__":
    main()
