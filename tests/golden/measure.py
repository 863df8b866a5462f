"""The golden figures: what every method makes of one small trained model, as it is on record in `figures.csv`.

    python tests/golden/measure.py             computes them again; prints what differs: old, new, and by how much
    python tests/golden/measure.py --accept    puts the new ones on record

A change of the library that moves one must change the file, and so say it. A new method gets its rows by itself.
Calibrated on the first bytes of the licence, evaluated on the next ones; Gram matrices are the dense model's, but where
a recipe needs what the pruned blocks before a block give. All is computed in float64, so that kernels and threads
differ little; in transformers norms and rotary embeddings are float32.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import gramprune as gp
from gramprune import machine
from gramprune.pruning import allocation, joint, masks, methods, reconstruct, refine, updates

HERE = Path(__file__).parent
FIGURES = HERE / "figures.csv"
TEXT = HERE.parents[1] / "LICENSE"
LENGTH, CALIBRATION, EVALUATION = 96, 64, 48  # bytes of a window, and windows
TOLERANCE = 1e-5
"""Relative. The largest difference between kernels was 2e-7, of conjugate gradients; the median one is 1e-9."""
PATTERNS = {"0.5": ("0.5", "row"), "0.6 matrix": ("0.6", "matrix"), "2:4": ("2:4", "row")}
WARM = "wanda"  # the mask that refinements and updates begin with


class Recipe(NamedTuple):
    """What makes a row."""

    mask: str
    refine: str = "none"
    update: str = "none"
    allocation: str = "uniform"
    target: str = "own"
    reconstruct: str = "none"

    @property
    def in_chain(self) -> bool:
        """Whether a block is pruned on what the pruned blocks before it give."""
        return self.target != "own" or self.reconstruct != "none"


def recipes() -> list[Recipe]:
    """Every method; refinements by themselves, and before the best update."""
    return [
        *(Recipe(name) for name in masks.names()),
        *(Recipe(name, update="joint") for name in methods.names(joint)),
        *(
            Recipe(WARM, name, update)
            for update in ("none", "exact")
            for name in methods.names(refine)
            if name != "none"
        ),
        *(Recipe(WARM, update=name) for name in methods.names(updates) if name != "none"),
        *(Recipe(WARM, allocation=name) for name in allocation.names()),
        Recipe(WARM, update="exact", target="dense"),
        Recipe(WARM, update="exact", target="dense", reconstruct="block"),
    ]


class World(NamedTuple):
    """The model in float64, its linears with their inputs in the dense model, and the texts."""

    model: torch.nn.Module
    linears: dict[str, torch.nn.Linear]
    inputs: dict[str, torch.Tensor]  # of linears (tokens, in), and what blocks give (sequences, length, width)
    grams: dict[str, gp.Gram]
    calibration: torch.Tensor  # (sequences, length)
    windows: torch.Tensor  # (windows, length), to measure perplexity on


@torch.no_grad()
def world() -> World:
    """The model, after it has seen the calibration text."""
    machine.set_environment(online=False)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float64, attn_implementation="eager")
    text = torch.tensor(list(TEXT.read_bytes()[: LENGTH * (CALIBRATION + EVALUATION)])).view(-1, LENGTH)
    linears = {name: m for name, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    inputs = seen(model, text[:CALIBRATION])
    return World(
        model, linears, inputs, {name: gram_of(inputs[name], name) for name in linears}, *text.split(CALIBRATION)
    )


def seen(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What linears get, by name, and what blocks give, by number."""
    found = {}

    def keep(module: torch.nn.Module, arguments: tuple, output: torch.Tensor, name: str) -> None:
        found[name] = arguments[0].flatten(0, 1) if isinstance(module, torch.nn.Linear) else output

    hooks = [
        module.register_forward_hook(partial(keep, name=name))
        for name, module in model.model.layers.named_modules()
        if isinstance(module, torch.nn.Linear) or name.isdecimal()
    ]
    model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    return found


def gram_of(inputs: torch.Tensor, name: str) -> gp.Gram:
    """Of a linear's inputs (tokens, in)."""
    return gp.Gram(inputs.T @ inputs, name, sums=inputs.sum(dim=0), tokens=len(inputs))


def measure() -> Iterator[dict[str, str]]:
    """The rows of the file: the dense model, then every recipe with every pattern that it can have."""
    made = world()
    dense = {name: linear.weight.detach().clone() for name, linear in made.linears.items()}
    yield row(made, dense, "dense", Recipe(*"------"))
    for label, (value, granularity) in PATTERNS.items():
        pattern = gp.Pattern.parse(value, granularity)
        for recipe in recipes():
            if recipe.allocation == "uniform" or not pattern.group:
                make = pruned_in_chain if recipe.in_chain else pruned
                yield row(made, dense, label, recipe, make(made, dense, pattern, recipe))


def pruned(made: World, dense: dict[str, torch.Tensor], pattern: gp.Pattern, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The weights that a recipe makes, by linear."""
    patterns = dict.fromkeys(dense, pattern)
    if recipe.allocation != "uniform":
        listed = [
            allocation.Linear(int(name.partition(".")[0]), name, dense[name], gram, pattern)
            for name, gram in made.grams.items()
        ]
        shares = allocation.allocate(listed, recipe.allocation)
        patterns = {name: gp.Pattern.parse(share, pattern.granularity) for (_, name), share in shares.items()}
    return {name: prune(dense[name], gram, patterns[name], recipe) for name, gram in made.grams.items()}


def pruned_in_chain(
    made: World, dense: dict[str, torch.Tensor], pattern: gp.Pattern, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """The same, every block on what those before it give, with the dense model's outputs as target."""
    put(made, dense)
    for block in range(len(made.model.model.layers)):
        members = {name: linear for name, linear in made.linears.items() if name.startswith(f"{block}.")}
        with torch.no_grad():
            given = seen(made.model, made.calibration)
            for name, linear in members.items():
                gram, cross = gram_of(given[name], name), given[name].T @ made.inputs[name]
                linear.weight.copy_(prune(gp.retarget_weight(dense[name], gram, cross), gram, pattern, recipe))
        if recipe.reconstruct == "block":
            outputs = lambda numbers, b=str(block): [seen(made.model, made.calibration[numbers])[b]]  # noqa: E731
            aims = lambda numbers, b=str(block): [made.inputs[b][numbers]]  # noqa: E731
            weights = [linear.weight for linear in members.values()]
            made.model.requires_grad_(False)
            for weight in weights:
                weight.requires_grad_(True)
            reconstruct.train_kept(outputs, aims, weights, [w.detach() != 0 for w in weights], CALIBRATION, epochs=2)
    return {name: linear.weight.detach().clone() for name, linear in made.linears.items()}


@torch.no_grad()
def put(made: World, weights: dict[str, torch.Tensor]) -> None:
    """Give linears these weights."""
    for name, linear in made.linears.items():
        linear.weight.copy_(weights[name])


def prune(weight: torch.Tensor, gram: gp.Gram, pattern: gp.Pattern, recipe: Recipe) -> torch.Tensor:
    """One linear's new weight (out, in)."""
    if recipe.update == "joint":
        return gp.prune_weight(weight, gram, pattern, recipe.mask)[1]
    mask = gp.select_mask(weight, gram, pattern, recipe.mask)
    mask = gp.refine_mask(weight, gram, mask, pattern, recipe.refine)[0]
    return gp.update_weight(weight, gram, mask, recipe.update)[0]


@torch.no_grad()
def row(
    made: World,
    dense: dict[str, torch.Tensor],
    pattern: str,
    recipe: Recipe,
    new: dict[str, torch.Tensor] | None = None,  # None: the dense weights
) -> dict[str, str]:
    """Names and figures of a recipe; layer errors are relative to the outputs."""
    put(made, dense if new is None else new)
    errors = []
    for name, gram in made.grams.items():
        whole = gp.layer_error(dense[name], torch.zeros_like(dense[name]), gram)
        errors.append(gp.layer_error(dense[name], made.linears[name].weight, gram) / whole)
    logits = made.model(input_ids=made.windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), made.windows[:, 1:].flatten())
    zeros = sum(int((linear.weight == 0).sum()) for linear in made.linears.values())
    figures = {"perplexity": loss.exp(), "layer_error": sum(errors) / len(errors), "worst_error": max(errors)}
    named = {"pattern": pattern, **recipe._asdict(), "zeros": str(zeros)}
    return named | {name: f"{float(value):.9g}" for name, value in figures.items()}


def on_record() -> list[dict[str, str]]:
    """The rows of the file."""
    with open(FIGURES, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def name_of(figures: dict[str, str]) -> str:
    """What a row is called."""
    return " ".join(figures[name] for name in ("pattern", *Recipe._fields))


def differences(old: list[dict[str, str]], new: list[dict[str, str]]) -> list[str]:
    """A line for every figure that has moved by more than the tolerance, and for every row that has come or gone."""
    lines = []
    before, after = ({name_of(each): each for each in rows} for rows in (old, new))
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            lines.append(f"{name}: {'new' if name in after else 'gone'}")
            continue
        for figure in ("zeros", "perplexity", "layer_error", "worst_error"):
            was, now = float(before[name][figure]), float(after[name][figure])
            if abs(now - was) > TOLERANCE * abs(was) * (figure != "zeros"):
                change = f"{(now - was) / was:+.2e}" if was else f"{now - was:+g}"
                lines.append(f"{name}: {figure} {before[name][figure]} -> {after[name][figure]} ({change})")
    return lines


def main() -> None:
    """Print what differs, and put it on record if that is asked for."""
    new = list(measure())
    found = differences(on_record() if FIGURES.exists() else [], new)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(new)} rows, {len(found)} differences by more than {TOLERANCE:g}")
    if "--accept" in sys.argv[1:]:
        with open(FIGURES, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(new[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(new)
    elif found:
        sys.exit("If they are meant to move: make golden accept=yes, and a line in CHANGELOG.md.")


if __name__ == "__main__":
    main()
