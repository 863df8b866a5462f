"""What recipes are worth on a real model: layer errors of every mask × update, and perplexities of the sensible ones.

    python benchmarks/recipes.py errors     --model FOLDER --calibration TEXT [--evaluation TEXT] 0.6 2:4
    python benchmarks/recipes.py perplexity --model FOLDER --calibration TEXT --evaluation TEXT 0.5 0.6 0.7 2:4
    python benchmarks/recipes.py samples    --model FOLDER --calibration TEXT --evaluation TEXT 0.6
    python benchmarks/recipes.py named      --model FOLDER --calibration TEXT --evaluation TEXT 0.5 0.6 2:4
    python benchmarks/recipes.py granularity --model FOLDER --calibration TEXT --evaluation TEXT 0.5 0.6 0.7
    python benchmarks/recipes.py allocation --model FOLDER --calibration TEXT --evaluation TEXT 0.5 0.6 0.7

A model is a folder, or an embedded one by its name, which is trained first. Texts are .txt, .jsonl or .parquet files,
or `demo` and `demo_heldout`. `errors`: on the dense model's activations, the layer error of every mask and refinement
with every update, as the geometric mean over all linears relative to the mask wanda without an update, and with an
evaluation text the perplexity of the model that has those weights in all blocks; `--layers FILE` keeps the errors of
every linear as CSV. (mrp's solution M is exact, damped otherwise, and left out.) `perplexity`: by the papers' protocol,
each block calibrated on what the pruned blocks before it give. `samples`: the same for a few recipes over the number of
calibration sequences. `named`: perplexities of the recipes that a run can name, fractions counted in rows and over the
matrix, and the seconds that each takes to prune the model once. `granularity`: sparsity counted in rows against over
the matrix, layer errors as above and, with an evaluation text, perplexities. `allocation`: perplexities of a few
recipes with every allocation of the zeros, and the share of zeros that each model has in all. `--blocks` takes the
first ones. Tables are printed as Markdown; rows as they come to the log. The whole model is in memory, and one process
does it all: for models of a laptop's size. Experts may need a stand-in for their Gram matrix, which only the workflow
has.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import tables
import torch

import gramprune as gp
from gramprune.evaluation.perplexity import perplexity, windows
from gramprune.experiment.inputs import EMBEDDED, Dataset
from gramprune.experiment.recipes import RECIPES as NAMED
from gramprune.model.blocks import open_blocks
from gramprune.model.demo import DEMOS, train
from gramprune.model.logits import whole_logits
from gramprune.model.products import Matrix, Products, rows_of_part
from gramprune.pruning import allocation, joint, masks, methods
from gramprune.pruning.gram import accumulate
from gramprune.pruning.sparsity import GRANULARITIES
from gramprune.text import calibration, demo
from gramprune.text.read import documents

Pruned = list[tuple[str, Matrix, torch.Tensor]]
"""Parameter in the model, which part of it, and the weight (out, in) that it gets."""

BATCH = 8
UPDATES = [("none", {}), ("sparsegpt", {}), ("mrp", {"solution": "S"}), ("admm", {}), ("pcg", {}), ("exact", {})]
REFINEMENTS = [("wanda", "dsnot"), ("wanda", "sparseswaps"), ("wanda", "swaps-reoptimised")]
RECIPES = [  # mask, refinement, update, target
    ("magnitude", "none", "none", "own"),
    ("wanda", "none", "none", "own"),
    ("ria", "none", "none", "own"),
    ("wanda", "dsnot", "none", "own"),
    ("wanda", "sparseswaps", "none", "own"),
    ("sparsegpt", "none", "joint", "own"),
    ("mrp", "none", "mrp", "own"),
    ("wanda", "none", "admm", "own"),
    ("wanda", "none", "exact", "own"),
    ("wanda", "sparseswaps", "exact", "own"),
    ("admm", "none", "joint", "own"),
    ("admm", "none", "exact", "own"),
    ("alps", "none", "joint", "own"),
    ("admm", "none", "joint", "dense"),
    ("alps", "none", "exact", "dense"),
    ("wanda", "swaps-reoptimised", "exact", "own"),
    ("wanda", "swaps-reoptimised", "exact", "dense"),
]
BY_GRANULARITY = [
    ("wanda", "none", "none", "own"),
    ("wanda", "sparseswaps", "none", "own"),
    ("admm", "none", "joint", "own"),
    ("alps", "none", "joint", "own"),
    ("alps", "none", "exact", "own"),
    ("wanda", "swaps-reoptimised", "exact", "own"),
    ("alps", "swaps-reoptimised", "exact", "own"),
]
ALLOCATED = [
    ("wanda", "none", "none", "own"),
    ("admm", "none", "joint", "own"),
    ("alps", "none", "exact", "dense"),
]
OVER_SAMPLES = [
    recipe
    for recipe in RECIPES
    if recipe[:3]
    in (
        ("wanda", "none", "none"),
        ("wanda", "sparseswaps", "none"),
        ("admm", "none", "joint"),
        ("alps", "none", "joint"),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["errors", "perplexity", "samples", "named", "granularity", "allocation"])
    parser.add_argument("patterns", nargs="+", help="such as 0.6 or 2:4")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence and window")
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--granularity", default="row", help="of fractions that are allocated")
    parser.add_argument("--blocks", type=int, help="of layer errors, from the first on")
    parser.add_argument("--layers", type=Path, help="CSV file for the layer errors of every linear")
    parser.add_argument("--only", default="", help="recipes whose name has this in it")
    parser.add_argument("--skip", help="but not those whose name has this in it")
    parser.add_argument("--keep", help="name of a file of results")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        if (name := str(arguments.model)) in DEMOS:
            arguments.model, said = Path(folder), partial(print, file=sys.stderr)
            train(arguments.model, name, demo.documents(heldout=False), demo.documents(heldout=True), report=said)
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    patterns = [gp.Pattern.parse(text) for text in arguments.patterns]
    show = partial(shown, arguments)
    both = both_granularities(patterns)
    if arguments.what == "errors":
        found = errors(arguments, patterns, layer_errors, measuring(arguments) if arguments.evaluation else None)
        for cells, part, form in zip(found, ("", "-perplexity"), (".3f", ".2f"), strict=False):
            show(cells, form, part)
    elif arguments.what == "perplexity":
        show(perplexities(arguments, patterns, RECIPES, [arguments.samples]))
    elif arguments.what == "named":
        show(perplexities(arguments, both, list(map(recipe_named, NAMED)), [arguments.samples]))
    elif arguments.what == "granularity":
        show(errors(arguments, patterns, granularity_errors)[0], ".3f")
        if arguments.evaluation:
            show(perplexities(arguments, both, BY_GRANULARITY, [arguments.samples]), part="-perplexity")
    elif arguments.what == "allocation":
        show(allocations(arguments, patterns))
    else:
        show(perplexities(arguments, patterns, OVER_SAMPLES, [16, 64, 256]))


def both_granularities(patterns: list[gp.Pattern]) -> list[gp.Pattern]:
    """Fractions in rows and over the matrix; N:M as it is."""
    return [
        pattern if pattern.group else gp.Pattern.parse(pattern.sparsity, granularity)
        for pattern in patterns
        for granularity in (["group"] if pattern.group else GRANULARITIES)
    ]


def recipe_named(name: str) -> tuple[str, ...]:
    keys = {"refine": "none", "update": "none", "target": "own", **NAMED[name]}
    return keys["mask"], keys["refine"], keys["update"], keys["target"], name


def shown(arguments: argparse.Namespace, cells: dict[str, dict[str, float]], form: str = ".2f", part: str = "") -> None:
    """Print rows of named cells, and keep them."""
    columns = dict.fromkeys(name for row in cells.values() for name in row)
    forms = {name: ".0f" if name.endswith(", s") else ".4f" if name.endswith(", zeros") else form for name in columns}
    rows = [[name, *map(row.get, columns)] for name, row in cells.items()]
    tables.keep(arguments.keep and f"{arguments.keep}{part}", {"": "", **forms}, rows)


def texts_of(path: Path) -> list[str]:
    dataset = EMBEDDED.get(str(path)) or Dataset(path=str(path))
    found = documents(dataset.source_settings, path.name, Counter())
    return ["".join(text) for _, text in found]


def calibrated(arguments: argparse.Namespace, samples: int) -> torch.Tensor:
    """(samples, length) int64."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, local_files_only=True)
    encode = lambda text: tokenizer(text, verbose=False)["input_ids"]  # noqa: E731
    texts, name = texts_of(arguments.calibration), str(arguments.calibration)
    return torch.tensor(calibration.sequences(texts, encode, samples, arguments.length, 0, name).sequences)


def observed(blocks, index: int, tokens: torch.Tensor, hidden: list, dense: list | None) -> tuple[dict, dict, dict]:
    """Weights (out, in) and Gram matrices of a block's linears; with `dense` inputs, also cross-Gram matrices."""
    kept: dict[str, dict] = {}
    with blocks.loaded(index) as block, Products(block) as seen:
        for number, batch in enumerate(tokens.split(BATCH)):
            blocks.forward(batch, hidden[number] if hidden else None)
            own, shares = dict(seen.inputs), seen.shares()
            seen.clear()
            if dense is not None:
                blocks.forward(batch, dense[number] if dense else None)
            for name in dict.fromkeys(shares.values()):
                (rows,) = own[name]
                sums = kept.setdefault(name, {"gram": 0, "sums": 0, "tokens": 0, "cross": 0})
                if not sums["tokens"]:
                    sums["gram"] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
                accumulate(sums["gram"], rows)
                sums["sums"] = sums["sums"] + rows.sum(dim=0).double()
                sums["tokens"] += len(rows)
                if dense is not None:
                    sums["cross"] = sums["cross"] + rows.T @ seen.inputs[name][0]
            seen.clear()
        parameters = dict(block.named_parameters())
        weights = {}
        for name, matrix in seen.matrices.items():
            weight = rows_of_part(parameters[matrix.parameter], matrix.part, matrix.parts)
            weights[name] = (weight.T if matrix.transposed else weight).detach().float().clone()
    grams = {
        first: (gp.Gram(p["gram"], f"block {index}, {first}", p["sums"], p["tokens"]), p["cross"])
        for first, p in kept.items()
    }
    return weights, {name: grams[shares[name]] for name in shares}, dict(seen.matrices)


def change(new: dict[str, torch.Tensor], matrices: dict) -> Callable[[str, torch.Tensor], None]:
    """What puts pruned weights (out, in) in the place of a block's own."""

    def put(parameter: str, values: torch.Tensor) -> None:
        for name, matrix in matrices.items():
            if matrix.parameter == parameter:
                weight = new[name].T if matrix.transposed else new[name]
                rows_of_part(values, matrix.part, matrix.parts).copy_(weight)

    return put


@torch.no_grad()
def errors(
    arguments: argparse.Namespace,
    patterns: list[gp.Pattern],
    of_layer: Callable,
    measured: Callable[[Pruned], float] | None = None,
) -> list[dict[str, dict[str, float]]]:
    """Tables of layer errors and, where models are to be measured, of that."""
    blocks, _ = open_blocks(arguments.model, "float32", arguments.device)
    tokens = calibrated(arguments, arguments.samples)
    logs: dict[str, dict[str, list[float]]] = {}
    models: dict[str, dict[str, Pruned]] = {"dense": {"none": []}}
    hidden: list = []
    for index in range(min(len(blocks), arguments.blocks or len(blocks))):
        weights, grams, matrices = observed(blocks, index, tokens, hidden, None)
        for name, (gram, _) in grams.items():
            parameter = f"{blocks.prefix}.{index}.{matrices[name].parameter}"
            for pattern in patterns:
                started = time.perf_counter()
                for row, column, new, value in of_layer(weights[name], gram, pattern):
                    logs.setdefault(f"{pattern} {row}", {}).setdefault(column, []).append(math.log(value))
                    if measured:
                        model = models.setdefault(f"{pattern} {row}", {}).setdefault(column, [])
                        model.append((parameter, matrices[name], new))
                    if arguments.layers:
                        with open(arguments.layers, "a") as file:
                            file.write(f"{index},{name},{pattern},{row},{column},{value:.6g}\n")
                print(f"block {index} {name} {pattern}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
        with blocks.loaded(index):
            hidden = [blocks.forward(b, hidden[n] if hidden else None)[1] for n, b in enumerate(tokens.split(BATCH))]
    means = {
        row: {column: math.exp(sum(values) / len(values)) for column, values in cells.items()}
        for row, cells in logs.items()
    }
    if not measured:
        return [means]
    return [means, {row: {column: measured(new) for column, new in cells.items()} for row, cells in models.items()}]


def layer_errors(weight: torch.Tensor, gram: gp.Gram, pattern: gp.Pattern):
    """Mask, update, new weight, and layer error relative to wanda's without an update."""
    wanda = gp.select_mask(weight, gram, pattern, "wanda")
    unit = gp.layer_error(weight, weight * wanda, gram)
    chosen = {}
    for method in methods.names(masks):
        chosen[method] = gp.select_mask(weight, gram, pattern, method)
    for method in methods.names(joint):
        chosen[method], new, _ = gp.prune_weight(weight, gram, pattern, method)
        yield method, "joint", new, gp.layer_error(weight, new, gram) / unit
    for mask, refinement in REFINEMENTS:
        chosen[f"{mask} + {refinement}"], _ = gp.refine_mask(weight, gram, chosen[mask], pattern, refinement)
    for label, mask in chosen.items():
        for update, options in UPDATES:
            new, _ = gp.update_weight(weight, gram, mask, update, **options)
            yield label, " ".join([update, *options.values()]), new, gp.layer_error(weight, new, gram) / unit


def granularity_errors(weight: torch.Tensor, gram: gp.Gram, pattern: gp.Pattern):
    """Recipe, granularity, new weight, and layer error relative to wanda's by rows without an update."""
    unit = None
    for recipe in BY_GRANULARITY:
        for granularity in GRANULARITIES:
            counted = gp.Pattern.parse(pattern.sparsity, granularity)
            new = pruned(weight, gram, None, counted, recipe)
            error = gp.layer_error(weight, new, gram)
            unit = unit or error
            yield named(recipe), granularity, new, error / unit


def named(recipe: tuple) -> str:
    if len(recipe) > 4:
        return recipe[4]
    return " + ".join(part for part in recipe[:3] if part != "none") + (", dense target" * (recipe[3] == "dense"))


def measuring(arguments: argparse.Namespace) -> Callable[[Pruned], float]:
    """What gives the perplexity of the model with some of its matrices pruned."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, local_files_only=True)
    text = "\n\n".join(texts_of(arguments.evaluation))
    tokens = tokenizer(text, verbose=False)["input_ids"]
    test = windows([tokens], arguments.length, arguments.length, arguments.windows, str(arguments.evaluation))

    @torch.no_grad()
    def measured(pruned: Pruned) -> float:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, local_files_only=True).eval()
        parameters = dict(model.named_parameters())
        for name, matrix, weight in pruned:
            values = rows_of_part(parameters[name].data, matrix.part, matrix.parts)
            values.copy_(weight.T if matrix.transposed else weight)
        return perplexity(whole_logits(model.to(arguments.device)), test, arguments.length, BATCH)["perplexity"]

    return measured


@torch.no_grad()
def perplexities(
    arguments: argparse.Namespace, patterns: list[gp.Pattern], recipes: list, samples: list[int]
) -> dict[str, dict[str, float]]:
    measured = measuring(arguments)
    both = len({pattern.granularity for pattern in patterns} - {"group"}) == 2
    columns = {pattern: f"{pattern} {pattern.granularity}" if both else str(pattern) for pattern in patterns}
    dense = measured([])
    rows: dict[str, dict[str, float]] = {"dense": {column: dense for column in columns.values()}}
    for recipe in recipes:
        label = named(recipe)
        if arguments.only not in label or (arguments.skip and arguments.skip in label):
            continue
        for count in samples:
            tokens = calibrated(arguments, count)
            for pattern in patterns:
                started = time.perf_counter()
                made = pruned_model(arguments, tokens, pattern, recipe)
                seconds = time.perf_counter() - started
                value = measured(made)
                column = columns[pattern] if len(samples) == 1 else f"{columns[pattern]}, {count} samples"
                rows.setdefault(label, {})[column] = value
                if len(recipe) > 4:
                    rows[label][f"{column}, s"] = seconds
                print(f"{label} | {column} | {value:.3f} | {seconds:.0f} s", file=sys.stderr, flush=True)
    return rows


@torch.no_grad()
def allocations(arguments: argparse.Namespace, patterns: list[gp.Pattern]) -> dict[str, dict[str, float]]:
    """Perplexities, and shares of zeros, by recipe and allocation."""
    patterns = [gp.Pattern.parse(pattern.sparsity, arguments.granularity) for pattern in patterns]
    measured, tokens = measuring(arguments), calibrated(arguments, arguments.samples)
    dense = measured([])
    rows: dict[str, dict[str, float]] = {"dense": {str(pattern): dense for pattern in patterns}}
    for pattern in patterns:
        members = dense_linears(arguments, tokens, pattern)
        for method in ("uniform", *methods.names(allocation)):
            given = {} if method == "uniform" else allocation.allocate(members, method)
            chosen = {key: gp.Pattern.parse(share, pattern.granularity) for key, share in given.items()}
            for recipe in ALLOCATED:
                label = f"{named(recipe)}, {method}"
                if arguments.only in label and not (arguments.skip and arguments.skip in label):
                    made = pruned_model(arguments, tokens, pattern, recipe, chosen)
                    total = sum(weight.numel() for *_, weight in made)
                    share = sum(int((weight == 0).sum()) for *_, weight in made) / total
                    value = measured(made)
                    rows.setdefault(label, {}).update({str(pattern): value, f"{pattern}, zeros": share})
                    print(f"{label} | {pattern} | {value:.3f} | {share:.4f}", file=sys.stderr, flush=True)
    return rows


def dense_linears(arguments: argparse.Namespace, tokens: torch.Tensor, pattern: gp.Pattern) -> list[allocation.Linear]:
    """All linears of the dense model, with their Gram matrices."""
    blocks, _ = open_blocks(arguments.model, "float32", arguments.device)
    hidden, found = [], []
    for index in range(len(blocks)):
        weights, grams, _ = observed(blocks, index, tokens, hidden, None)
        found += [allocation.Linear(index, name, weights[name], gram, pattern) for name, (gram, _) in grams.items()]
        with blocks.loaded(index):
            hidden = [blocks.forward(b, hidden[n] if hidden else None)[1] for n, b in enumerate(tokens.split(BATCH))]
    return found


def pruned_model(
    arguments: argparse.Namespace,
    tokens: torch.Tensor,
    pattern: gp.Pattern,
    recipe: tuple,
    chosen: dict[tuple[int, str], gp.Pattern] | None = None,  # of linears that have another pattern, by block and name
) -> Pruned:
    blocks, _ = open_blocks(arguments.model, "float32", arguments.device)
    hidden, dense, done = [], [] if recipe[3] == "dense" else None, []
    for index in range(len(blocks)):
        weights, grams, matrices = observed(blocks, index, tokens, hidden, dense)
        of = {name: (chosen or {}).get((index, name), pattern) for name in grams}
        new = {name: pruned(weights[name], gram, cross, of[name], recipe) for name, (gram, cross) in grams.items()}
        if dense is not None:
            with blocks.loaded(index):
                dense = [blocks.forward(b, dense[n] if dense else None)[1] for n, b in enumerate(tokens.split(BATCH))]
        with blocks.loaded(index, change(new, matrices)):
            hidden = [blocks.forward(b, hidden[n] if hidden else None)[1] for n, b in enumerate(tokens.split(BATCH))]
        for name, weight in new.items():
            done.append((f"{blocks.prefix}.{index}.{matrices[name].parameter}", matrices[name], weight))
    return done


def pruned(weight: torch.Tensor, gram: gp.Gram, cross, pattern: gp.Pattern, recipe: tuple) -> torch.Tensor:
    method, refinement, update, target, *_ = recipe
    if target == "dense":
        weight = gp.retarget_weight(weight, gram, cross)
    if update == "joint":
        return gp.prune_weight(weight, gram, pattern, method)[1]
    mask = gp.select_mask(weight, gram, pattern, method)
    mask, _ = gp.refine_mask(weight, gram, mask, pattern, refinement)
    return gp.update_weight(weight, gram, mask, **({"method": update} if isinstance(update, str) else update))[0]


if __name__ == "__main__":
    main()
