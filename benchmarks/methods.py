"""Time of the methods as ratios to named alternatives in the same run, and how long each takes on one layer.

    python benchmarks/methods.py ratios                                the figures that the project promises; minutes
    python benchmarks/methods.py ratios --model FOLDER --calibration TEXT     the same on a real model's layers too
    python benchmarks/methods.py times 4096x4096 4096x11008 --device cuda     every method on random layers (out x in)

Ratios, at 60 % by rows and at 2:4:
    sparseswaps   to convergence, with its certificate, against scoring all kept × pruned pairs of a row at every
                  swap in plain torch; that one is timed on a few rows and must end with the same masks
    admm          20 iterations with a fixed mask, against one factorisation and 20 products of the same shapes
    exact, pcg    against admm; with the layer errors of all three
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import tables
import torch
from recipes import calibrated, observed
from timing import timed

import gramprune as gp
from gramprune.pruning import joint, masks, methods, refine, updates

PATTERNS = ("0.6", "2:4")
COLUMNS = {
    "linear": "",
    "pattern": "",
    "sparseswaps, s": ".2f",
    "all pairs, s": ".1f",
    "times faster": ".0f",
    "admm / its products": ".2f",
    "exact / admm": ".2f",
    "pcg / admm": ".2f",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["ratios", "times"])
    parser.add_argument("shapes", nargs="*", help="out x in, such as 1024x4096")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=3, help="on which all pairs are scored")
    parser.add_argument("--keep", help="name of a file of results, for ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load, rows = os.getloadavg()[0], []
    shapes = arguments.shapes or (["1024x1024", "1024x4096"] if arguments.what == "ratios" else ["1024x1024"])
    layers = [(shape, *random_layer(*map(int, shape.split("x")), arguments.device)) for shape in shapes]
    if arguments.model:
        layers += real_layers(arguments)
    for name, weight, gram in layers:
        for pattern in map(gp.Pattern.parse, PATTERNS):
            if arguments.what == "ratios":
                rows.append(ratios(name, weight, gram, pattern, arguments))
            else:
                times(name, weight, gram, pattern, arguments)
    if rows:
        tables.keep(arguments.keep, COLUMNS, rows, load=load)


def random_layer(rows: int, columns: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal weights; inputs that are correlated and differ in norm by up to e², on 4 tokens per input."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    scale = torch.rand(columns, generator=generator).mul(2).exp()
    gram = torch.zeros(columns, columns, device=device)
    mix = (mix * scale).to(device)
    for _ in range(4):
        inputs = torch.randn(columns, columns, generator=generator).to(device) @ mix
        gram.addmm_(inputs.T, inputs)
    return torch.randn(rows, columns, generator=generator).to(device), gram


@torch.no_grad()
def real_layers(arguments: argparse.Namespace) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """The linears of the first block that have inputs of their own."""
    from gramprune.model.blocks import open_blocks

    blocks, _ = open_blocks(arguments.model, "float32", arguments.device)
    weights, grams, _ = observed(blocks, 0, calibrated(arguments, arguments.samples), [], None)
    first = {id(gram): name for name, (gram, _) in reversed(grams.items())}
    return [(name, weights[name], grams[name][0].matrix) for name in first.values()]


def ratios(name: str, weight: torch.Tensor, matrix: torch.Tensor, pattern: gp.Pattern, arguments) -> list:
    """A row of the table."""
    device = arguments.device
    mask = gp.select_mask(weight, matrix, pattern, "wanda")
    shape = f"{name} {weight.shape[0]}x{weight.shape[1]} {pattern}"

    seconds, (refined, stats) = timed(lambda: gp.refine_mask(weight, matrix, mask, pattern, "sparseswaps"), device, 1)
    swaps, rows = stats["swaps"], torch.arange(arguments.rows)
    gram = gp.Gram(matrix)
    scaled, dense = gram.scaled(), weight * gram.norms
    each, found = timed(lambda: [all_pairs(dense[r], mask[r], scaled, pattern.group) for r in rows], device, 1)
    same = all(torch.equal(found[r], refined[r]) for r in rows)
    plain = each / float(swaps[rows].sum() + len(rows)) * float(swaps.sum() + len(swaps))  # per swap: rows differ
    row = [
        f"{weight.shape[0]}×{weight.shape[1]} {name * ('x' not in name)}",
        str(pattern),
        seconds,
        plain,
        plain / seconds,
    ]
    print(
        f"{shape}: sparseswaps {seconds:.2f} s, {swaps.double().mean():.1f} swaps per row, "
        f"{seconds / float(swaps.sum() + len(swaps)) * 1e6:.1f} µs each; all pairs {plain:.1f} s, "
        f"{plain / seconds:.0f} x; "
        f"{'same' if same else 'OTHER'} masks, certified {stats['certified'].double().mean():.3f}, "
        f"error {stats['error_after'] / stats['error_before']:.3f}",
        flush=True,
    )

    def products() -> None:
        inverse = gp.Gram(matrix).inverse(0.1, shift=1.0)[0]
        current = dense
        for _ in range(20):
            current = current @ inverse

    unit, _ = timed(products, device)
    none = gp.layer_error(weight, weight * mask, matrix)
    parts, admm = [], None
    for method, options in (
        ("admm", {}),
        ("exact", {}),
        ("pcg", {"iterations": 10}),
        ("pcg", {"iterations": 20}),
        ("pcg", {}),
    ):
        update = lambda m=method, o=options: gp.update_weight(weight, gp.Gram(matrix), mask, m, **o)  # noqa: E731
        seconds, (new, stats) = timed(update, device)
        admm = admm or seconds
        if not options:
            row.append(seconds / (unit if method == "admm" else admm))
        error = gp.layer_error(weight, new, matrix) / none
        steps = f"-{stats['iterations']}" if "iterations" in stats else ""
        parts.append(f"{method}{steps} {seconds:.2f} s = {seconds / admm:.2f} x admm, error {error:.4f}")
    print(f"{shape}: admm = {admm / unit:.2f} x (factorisation + 20 products); " + "; ".join(parts), flush=True)
    return row


def all_pairs(weights: torch.Tensor, mask: torch.Tensor, scaled: torch.Tensor, group: int) -> torch.Tensor:
    """The paper's way for one row (arXiv 2512.10922): the best of all pairs, until none lowers the error."""
    kept, removed = mask.clone(), weights.masked_fill(mask, 0)
    c = scaled @ removed
    error = removed @ c
    while True:
        u, p = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        a = weights[u] * (weights[u] + 2 * c[u])
        b = weights[p] * (weights[p] - 2 * c[p])
        change = a[:, None] + b[None, :] - 2 * torch.outer(weights[u], weights[p]) * scaled[u[:, None], p[None, :]]
        if group:
            change[(u // group)[:, None] != (p // group)[None, :]] = float("inf")
        best, place = change.flatten().min(dim=0)
        if not best < -1e-6 * error:
            return kept
        u, p = u[place // len(p)], p[place % len(p)]
        c += weights[u] * scaled[u] - weights[p] * scaled[p]
        kept[u], kept[p] = False, True
        error = error + best


def times(name: str, weight: torch.Tensor, matrix: torch.Tensor, pattern: gp.Pattern, arguments) -> None:
    """Every method once, its factorisations included."""
    device, sums = arguments.device, torch.zeros(weight.shape[1], device=arguments.device)
    unit, mask = None, gp.select_mask(weight, matrix, pattern, "wanda")

    def row(kind: str, method: str, call: Callable) -> None:
        nonlocal unit
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds, (new, note) = timed(call, device, 1)
        error = gp.layer_error(weight, new, matrix)
        unit = unit or gp.layer_error(weight, weight * mask, matrix)
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device != "cpu" else ""
        print(f"{name} {pattern}: {kind} {method}: {seconds:.2f} s, error {error / unit:.4f}{memory}{note}", flush=True)

    for method in methods.names(masks):
        row("mask", method, lambda m=method: (weight * gp.select_mask(weight, matrix, pattern, m), ""))
    for method in methods.names(joint):
        row("joint", method, lambda m=method: (gp.prune_weight(weight, matrix, pattern, m)[1], ""))
    for method in methods.names(updates):
        row("wanda + update", method, lambda m=method: (gp.update_weight(weight, matrix, mask, m)[0], ""))
    for method in ("dsnot", "sparseswaps", "swaps-reoptimised"):

        def refined(method: str = method):
            gram = gp.Gram(matrix, sums=sums, tokens=1)
            new, stats = gp.refine_mask(weight, gram, mask, pattern, method)
            note = f", {stats['swaps'].double().mean():.0f} swaps per row"
            if method == "swaps-reoptimised":
                return gp.update_weight(weight, gram, new, "exact")[0], note
            return weight * new, note

        row("wanda + refine", method, refined)
    assert set(methods.names(refine)) == {"none", "dsnot", "sparseswaps", "swaps-reoptimised"}


if __name__ == "__main__":
    main()
