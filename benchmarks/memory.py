"""Peak memory of a block job against the size of what it must hold, for a 6-block and a 24-block model.

    python benchmarks/memory.py                    both dtypes; minutes, and 2 GB of temporary disk
    python benchmarks/memory.py --dtype bfloat16   one of them

Why: models that do not fit into memory can be pruned only if a job holds one block, whatever the number of blocks.
The bound: peak ≤ 1.3 × (embeddings + one block + its Gram matrices + one batch).

How: the stages capture, mask (wanda), update (admm) and update (joint) of a middle block, and capture of the block
after it behind pruned weights, run on random Llamas, each in a process of its own. Its peak resident memory, minus
that of a process that only imports the same modules, is the job's. The alternative, in the same run: load the whole
model with transformers and do one forward pass of one batch.

What the sum counts, in bytes of the model's dtype unless said otherwise:
    embeddings   vocabulary × width; the head is tied to them
    block        all parameters of one block
    Gram         float32 squares of the distinct inputs of the linears: q/k/v, o, gate/up, down
    batch        batch × length tokens, each with the hidden states that enter and leave, the distinct inputs of the
                 linears, and what q, k, v, gate and up give
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
DEPTHS = (6, 24)
BYTES = {"float32": 4, "bfloat16": 2}
LIMIT = 1.3
MIB = 2**20
LLAMA = "transformers.models.llama.modeling_llama"  # imported by transformers when a Llama is made
IMPORTS = {
    "capture": ["gramprune.stages.capture", LLAMA],
    "capture, pruned before": ["gramprune.stages.capture", LLAMA],
    "mask": ["gramprune.stages.mask", "gramprune.pruning.masks.wanda"],
    "update": ["gramprune.stages.update", "gramprune.pruning.updates.admm"],
    "update, joint": ["gramprune.stages.update", "gramprune.pruning.joint.admm"],
    "whole model": ["torch", "transformers", LLAMA],
}
STAGES = [name for name in IMPORTS if name != "whole model"]
ORDER = ["capture", "mask", "update", "update, joint", "capture, pruned before", "whole model"]  # as they need files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=BYTES, help="of the model; by default both, one after the other")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return child(*chosen.child)
    print(f"width {WIDTH}, MLP {INNER}, {HEADS}/{KEY_HEADS} heads, vocabulary {VOCABULARY}, {BATCH} × {CONTEXT} tokens")
    imports = {name: peak("import", name, ".") for name in IMPORTS}
    print("imports alone, MiB: " + ", ".join(f"{name} {value / MIB:.0f}" for name, value in imports.items()))
    for dtype in [chosen.dtype] if chosen.dtype else BYTES:
        compare(dtype, imports)


def compare(dtype: str, imports: dict[str, int]) -> None:
    """Print the table of one dtype."""
    terms = expected(BYTES[dtype])
    total = sum(terms.values())
    peaks = {}
    for depth in DEPTHS:
        with tempfile.TemporaryDirectory() as folder:
            peak("build", f"{dtype} {depth}", folder)
            peaks[depth] = {name: peak("stage", name, folder) - imports[name] for name in ORDER}
    few, many = DEPTHS
    print(f"\n{dtype}: " + " + ".join(f"{name} {size / MIB:.1f}" for name, size in terms.items()), end="")
    print(f" = {total / MIB:.1f} MiB; bound {LIMIT} × that = {LIMIT * total / MIB:.1f} MiB")
    columns = [f"{few} blocks", f"{many} blocks", "ratio", "to the sum", f"≤ {LIMIT}", "whole model"]
    print(f"{'peak above imports, MiB':26}" + "".join(f"{text:>13}" for text in columns))
    for name in [*STAGES, "whole model"]:
        first, last = peaks[few][name], peaks[many][name]
        row = [f"{first / MIB:.1f}", f"{last / MIB:.1f}", f"{last / first:.2f}", f"{last / total:.2f}"]
        row += ["yes" if max(first, last) <= LIMIT * total else "NO"] if name in STAGES else [""]
        row += [f"{peaks[many]['whole model'] / last:.1f} ×"]
        print(f"{name:26}" + "".join(f"{text:>13}" for text in row), flush=True)


def expected(width: int) -> dict[str, int]:
    """The terms of the sum in bytes. width: bytes of an element of the model's dtype."""
    linears = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * INNER
    inputs = [WIDTH, WIDTH, WIDTH, INNER]  # of q/k/v, o, gate/up, down
    token = 2 * WIDTH + sum(inputs) + (WIDTH + 2 * KEYS + 2 * INNER)
    return {
        "embeddings": VOCABULARY * WIDTH * width,
        "block": (linears + 2 * WIDTH) * width,
        "Gram": sum(columns**2 for columns in inputs) * 4,
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
        import_module("job")
        gc.disable()  # as a job imports
        for module in IMPORTS[what]:
            import_module(module)
    elif kind == "build":
        dtype, depth = what.split()
        build(Path(folder), dtype, int(depth))
    elif what == "whole model":
        whole_model(Path(folder))
    else:
        stage(Path(folder), what)


def build(folder: Path, dtype: str, depth: int) -> None:
    """A random Llama in `folder`/model, written tensor by tensor, and what the first capture reads."""
    import torch
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    from gramprune.stages.fetch import fetch_model
    from gramprune.storage import artifacts, files, tensorfile

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=depth,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )
    config.save_pretrained(folder / "model")
    with init_empty_weights():
        parameters = dict(LlamaForCausalLM(config).named_parameters())  # a tied head is not among them
    number = getattr(torch, dtype)
    torch.manual_seed(0)
    shapes = {name: (number, tuple(parameter.shape)) for name, parameter in parameters.items()}
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
    block = json.loads((folder / "model" / "config.json").read_text())["num_hidden_layers"] // 2
    common = {"model": folder / "model.json", "tokens": folder / "tokens", "trail": "dense", "labels": {}}
    common |= {"device": "cpu", "metrics": folder / "metrics"}
    problem = {"options": {}, "precision": "float32", "target": {"method": "own"}}
    recipe = {"pattern": 0.5, "granularity": "row", **problem}
    if name.startswith("capture"):
        after = name != "capture"
        job(
            "capture:capture",
            {"dtype": "auto", "accumulate": "float32", "exclude": []},
            before=folder / ("inputs" if after else "before"),
            weights=folder / "weights" if after else None,
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
    execute(
        SimpleNamespace(params=parameters, log=[log], rule=function, wildcards=[], resources={}), function, **arguments
    )


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
