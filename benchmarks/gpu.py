"""All that a GPU computes, on a GPU: right, fast, and within the memory that the plan says. At most nine minutes.

    pip install torch transformers accelerate pydantic pyyaml numpy       no Snakemake
    python benchmarks/gpu.py                                              table, and gpu.json
    python benchmarks/gpu.py --device cpu --small                         the same in small on a CPU, in a minute

Parts, each begun only while there is time, by the least that it can take:
    same      every method on the GPU against the CPU: masks equal but for ties, layer errors to 1e-4
    floor     the device's rates: float32 and bfloat16 products, and bytes copied
    times     every method on layers of an 8B model, against the time of its operations and bytes at these rates
    block     sparseswaps until no exchange helps, for all linears of one block
    stages    the jobs' functions on a random model of two blocks: seconds, and memory against the plan's
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from timing import timed

import gramprune as gp
from gramprune.pruning import joint, masks, methods, updates
from gramprune.pruning.gram import accumulate

PATTERNS = ("0.6", "2:4")
LARGE = {"shapes": [(4096, 4096), (4096, 14336)], "width": 4096, "inner": 14336, "vocabulary": 128256, "heads": 32}
SMALL = {"shapes": [(64, 64), (64, 160)], "width": 64, "inner": 160, "vocabulary": 512, "heads": 4}
KINDS = {"mask": "masks", "joint": "joint", "update": "updates", "refine": "refine"}  # as resources call them
REFINEMENTS = ("dsnot", "sparseswaps", "swaps-reoptimised")
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU is done with in a minute")
    parser.add_argument("--minutes", type=float, default=9, help="after which no part is begun")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    chosen = parser.parse_args()
    if chosen.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU here; `--device cpu --small` tries this script without one.")
    torch.set_float32_matmul_precision("highest")
    sizes, device, ends = SMALL if chosen.small else LARGE, chosen.device, time.monotonic() + 60 * chosen.minutes
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "date": str(date.today()), "rows": []}
    print(f"{name}, torch {torch.__version__}, {found['date']}")
    rates: dict[str, float] = {}
    left_out = []
    for what, work, least in parts(sizes, device, rates):
        if time.monotonic() > ends or time.monotonic() + least() > ends:
            left_out.append(what)
            continue
        try:
            row = work()
        except Exception as error:  # of one part: the others still have something to say
            row = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        found["rows"].append({"what": what, **row})
        print(f"{what:46}" + "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
        if device != "cpu":
            torch.cuda.empty_cache()
    found["left_out"] = left_out
    chosen.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"Left out, as the time was spent: {', '.join(left_out) or 'nothing'}. Written: {chosen.output}.")
    if any("failed" in row or row.get("same") is False for row in found["rows"]):
        sys.exit(1)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parts(sizes: dict[str, Any], device: str, rates: dict[str, float]) -> list[tuple[str, Callable, Callable]]:
    """What is measured, in order of importance, the functions that do it, and the seconds that it takes at least.

    `rates` is filled by the first one.
    """
    every = [(kind, method) for kind in KINDS for method in known(kind)]
    found: list[tuple[str, Callable, Callable]] = [("floor", lambda: measure(rates, sizes["width"], device), float)]
    for kind, method in every:
        for pattern in PATTERNS:
            found.append((f"same {kind} {method} {pattern}", lambda a=(kind, method, pattern): same(*a, device), float))
    found.append(("same gram bfloat16", lambda: same_gram(sizes["width"], device), float))
    found.append(("stages", lambda: stages(sizes, device), float))
    slow = ("swaps-reoptimised", "exact", "mrp")  # at the end: they factorise systems for every row
    last = []
    for kind, method in every:
        for rows, columns in sizes["shapes"]:
            one = (kind, method, rows, columns, rates)
            (last if method in slow else found).append(
                (f"times {kind} {method} {rows}x{columns}", lambda a=one: times(*a, device), lambda a=one: floor(*a))
            )
    width, inner = sizes["width"], sizes["inner"]
    linears = [(width, width), (width // 4, width), (width // 4, width), (width, width)]
    linears += [(inner, width), (inner, width), (width, inner)]
    swaps = lambda: sum(floor("refine", "sparseswaps", *shape, rates) for shape in linears)  # noqa: E731
    return [*found, ("block sparseswaps 0.6", lambda: block(linears, device), swaps), *last]


def floor(kind: str, method: str, rows: int, columns: int, rates: dict[str, float]) -> float:
    """Seconds of a method's operations and bytes at the device's rates, by the costs that the plan counts with."""
    from gramprune.experiment.resources import COSTS, SWAPS, Cost

    cost = COSTS.get(f"{KINDS[kind]}.{method}", Cost())
    passes = cost.passes * (SWAPS * columns if method == "sparseswaps" else 1)
    work = cost.cubes * columns**3 + rows * (cost.squares * columns**2 + cost.systems * (0.4 * columns) ** 3)
    return work / rates["float32"] + 4 * passes * rows * columns / rates["copied"]


def known(kind: str) -> list[str]:
    if kind == "refine":
        return list(REFINEMENTS)
    if kind == "mask":
        return methods.names(masks)
    return methods.names({"joint": joint, "update": updates}[kind])


def layer(rows: int, columns: int, device: str) -> tuple[torch.Tensor, gp.Gram]:
    """Normal weights, and correlated inputs whose norms differ, on two tokens per input; made on the device."""
    generator = torch.Generator(device).manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: E731
    mix = normal(columns, columns) / columns**0.5 + torch.eye(columns, device=device)
    inputs = normal(2 * columns, columns) @ mix * torch.linspace(0, 2, columns, device=device).exp() + 0.1
    matrix = torch.zeros(columns, columns, device=device)
    accumulate(matrix, inputs)
    return normal(rows, columns), gp.Gram(matrix, sums=inputs.sum(dim=0), tokens=len(inputs))


def pruned(kind: str, method: str, pattern: gp.Pattern, weight: torch.Tensor, gram: gp.Gram) -> tuple:
    """Mask and pruned weight."""
    if kind == "mask":
        mask = gp.select_mask(weight, gram, pattern, method)
        return mask, weight.where(mask, 0)
    if kind == "joint":
        return gp.prune_weight(weight, gram, pattern, method)[:2]
    mask = gp.select_mask(weight, gram, pattern, "wanda")
    if kind == "refine":
        mask = gp.refine_mask(weight, gram, mask, pattern, method)[0]
        return mask, weight.where(mask, 0)
    return mask, gp.update_weight(weight, gram, mask, method)[0]


def same(kind: str, method: str, pattern: str, device: str) -> dict[str, Any]:
    """One method on a small layer on the CPU and on the device. Scores that nearly tie may be chosen otherwise."""
    weight, gram = layer(96, 128, "cpu")
    there = gp.Gram(gram.matrix.to(device), sums=gram.sums.to(device), tokens=gram.tokens)
    pattern = gp.Pattern.parse(pattern)
    (mask, new), (other, moved) = (
        pruned(kind, method, pattern, w, g) for w, g in ((weight, gram), (weight.to(device), there))
    )
    error = gp.layer_error(weight, new, gram)
    apart = abs(gp.layer_error(weight, moved.cpu(), gram) / error - 1) if error else 0.0
    differing = float((mask != other.cpu()).double().mean())
    return {"same": apart <= 1e-4 and differing <= 0.002, "error_apart": apart, "mask_apart": differing}


def same_gram(columns: int, device: str) -> dict[str, Any]:
    """bfloat16 inputs, by tensor cores where there are any, against float64; and against converted inputs in time."""
    inputs = torch.randn(4096, columns, device=device).bfloat16()
    matrix, converted = (torch.zeros(columns, columns, device=device) for _ in range(2))
    accumulate(matrix, inputs)  # the first products start the libraries
    accumulate(converted, inputs.float())
    seconds = timed(lambda: accumulate(matrix, inputs), device, 1)[0]
    before = timed(lambda: accumulate(converted, inputs.float()), device, 1)[0]
    exact = 2 * (inputs.double().T @ inputs.double())
    apart = float((matrix - exact).abs().max() / exact.abs().max())
    return {"same": apart < 1e-5, "apart": apart, "seconds": seconds, "times_faster": before / seconds}


def measure(rates: dict[str, float], size: int, device: str) -> dict[str, Any]:
    """Operations and bytes per second, the best of three."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        one = torch.randn(size, size, device=device, dtype=dtype)
        rates[name] = 2 * size**3 / timed(lambda one=one: one @ one, device)[0]
    one = torch.empty(64 * size, size, device=device)
    other = torch.empty_like(one)
    rates["copied"] = 2 * one.nbytes / timed(lambda: other.copy_(one), device)[0]
    return {f"{name}_per_second": rate for name, rate in rates.items()}


def times(kind: str, method: str, rows: int, columns: int, rates: dict[str, float], device: str) -> dict[str, Any]:
    """One method at 60 % by rows with its factorisations, beside its floor."""
    weight, gram = layer(rows, columns, device)
    gram = gp.Gram(gram.matrix, sums=gram.sums, tokens=gram.tokens)  # without what was looked at
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds, (_, new) = timed(lambda: pruned(kind, method, gp.Pattern.parse("0.6"), weight, gram), device, 1)
    row = {"seconds": seconds, "error": gp.layer_error(weight, new, gram) / gp.layer_error(weight, 0 * weight, gram)}
    if least := floor(kind, method, rows, columns, rates):
        row |= {"floor": least, "times_floor": seconds / least}
    if device != "cpu":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return row


def block(linears: list[tuple[int, int]], device: str) -> dict[str, Any]:
    """Swaps until none helps, with the certificate, for all linears of a block."""
    seconds, proved, swaps, pattern = 0.0, 0.0, 0, gp.Pattern.parse("0.6")
    for rows, columns in linears:
        weight, gram = layer(rows, columns, device)
        mask = gp.select_mask(weight, gram, pattern, "wanda")
        call = lambda w=weight, g=gram, m=mask: gp.refine_mask(w, g, m, pattern, "sparseswaps")  # noqa: E731
        more, (_, stats) = timed(call, device, 1)
        seconds, swaps = seconds + more, swaps + int(stats["swaps"].sum())
        proved += float(stats["certified"].double().mean()) / len(linears)
    return {"seconds": seconds, "swaps": swaps, "certified": proved}


def stages(sizes: dict[str, Any], device: str) -> dict[str, Any]:
    """What the jobs of two blocks call, one after the other; the plan's memory is that without the CUDA context."""
    with tempfile.TemporaryDirectory() as folder:
        return run_stages(Path(folder), sizes, device)


def run_stages(folder: Path, sizes: dict[str, Any], device: str) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from gramprune.experiment import pipeline, resources
    from gramprune.experiment.run import Run
    from gramprune.experiment.settings import Settings
    from gramprune.model import layout
    from gramprune.stages.capture import capture
    from gramprune.stages.fetch import fetch_model
    from gramprune.stages.mask import mask_block
    from gramprune.stages.update import update_block
    from gramprune.storage import artifacts, files

    samples, length = (16, 2048) if sizes is LARGE else (4, 32)
    made = LlamaConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["width"], intermediate_size=sizes["inner"],
        num_hidden_layers=2, num_attention_heads=sizes["heads"], num_key_value_heads=sizes["heads"] // 4,
        max_position_embeddings=length, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(made).to(torch.bfloat16).save_pretrained(folder / "model")
    manifest = folder / "model.json"
    fetch_model(manifest, "", {"kind": "folder", "source": str(folder / "model"), "revision": None}, "")
    about = artifacts.provenance("calibrate", {}, "", {}, model=files.read_json(manifest)["fingerprint"])
    tokens = torch.randint(sizes["vocabulary"], (samples, length))
    artifacts.write(folder / "tokens", {"tokens": tokens}, about)
    described = layout.describe(json.loads((folder / "model" / "config.json").read_text()))
    recipe = Run.model_validate({"mask": "wanda", "update": "admm", "sparsity": 0.5, "propagation": "pruned"})
    text = {"calibration": {"dataset": "demo", "samples": samples, "length": length}}  # random tokens stand for it
    text["evaluation"] = {"perplexity": {"datasets": ["demo_heldout"], "length": length}}
    runs = [{"mask": "wanda", "update": "admm", "sparsity": 0.5}]
    settings = Settings.model_validate({"model": str(folder / "model"), "batch_size": 2, "runs": runs, **text})
    common = {"model": manifest, "tokens": folder / "tokens", "labels": {}, "code": "", "device": device}
    common["metrics"] = folder / "metrics.json"
    seen = {"dtype": "auto", "accumulate": "float32", "experts": "routed", "min_tokens": 1}
    row: dict[str, Any] = {}

    def measured(name: str, call: Callable, need: Any) -> None:
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row[f"{name}_seconds"] = timed(call, device, 1)[0]
        row[f"{name}_plan_gib"] = (need.tensors if need.gpu_tensors is None else need.gpu_tensors) / GIB
        if device != "cpu":
            row[f"{name}_peak_gib"] = torch.cuda.max_memory_allocated() / GIB

    before = weights = None
    for number in range(2):
        trail = "run" if number else "dense"
        at = {"trail": trail, "block": number, **common}
        gram, inputs, mask = (folder / f"{number}_{what}" for what in ("gram", "inputs", "mask"))
        watched = {**seen, **pipeline.watched(described, trail, number, [])}
        files_of = {"before": before, "weights": weights, "dense": None, "inputs": inputs, "grams": gram}
        take = lambda a=at, f=files_of, s=watched: capture(**f, settings=s, batch_size=2, room=2**40, **a)  # noqa: E731
        measured(f"capture_{number}", take, resources.capture(described, settings, number, False, dense=not number))
        here = recipe if number else recipe.at(0, 2, (), dense_inputs=True)
        choose = lambda a=at, m=mask, g=gram, s=here: mask_block(  # noqa: E731
            mask=None, output=m, grams=g, settings=s.mask_settings, **a
        )
        measured(f"mask_{number}", choose, resources.mask(described, settings, number, here))
        weights = folder / f"{number}_weights"
        move = lambda a=at, m=mask, g=gram, w=weights, s=here: update_block(  # noqa: E731
            mask=m, output=w, grams=g, settings=s.update_settings, **a
        )
        measured(f"update_{number}", move, resources.update(described, settings, number, here))
        before = inputs
    return row


if __name__ == "__main__":
    main()
