"""What would be pruned: the linears of every block, found from a model's config.json alone.

The model is built without weights; one block of each kind works on a few tokens with made-up values, which tells
whether it can, which of its matrices are multiplied with something, and which of them see the same input and so share
a Gram matrix.
Costs a second or two, and the memory of one matrix, for a model of any size; where blocks share matrices, about as
much for each of them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gramprune.errors import GrampruneError, first_line, suggest
from gramprune.storage import files, fingerprint

TRIED = 6  # tokens in each of two sequences with which a block is tried
DTYPES = ("float32", "bfloat16", "float16", "float64")
LARGEST = {"num_hidden_layers": 2000, "hidden_size": 2**18, "intermediate_size": 2**21, "vocab_size": 2**23}
"""Sizes that are taken; those of real models are far below."""


def cached(path: Path, source: list[str | None], fetch: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The layout of a model, from `path` if it was made for the same config and libraries, else made and kept.

    source: what the model's config.json is fetched from. fetch: fetches it; a hub model's is asked for only once, so
    that planning needs no network afterwards. The file is for people too: it lists what will be pruned.
    transformers is imported only when it must be made.
    """
    known: dict[str, Any] = {}
    with suppress(GrampruneError, TypeError, ValueError):  # a missing or damaged one is made again: it is only kept
        known = dict(files.read_json(path))
    from_hub = source[0] == "hub" and known.get("source") == source
    config = known["config"] if from_hub and "config" in known else fetch()
    key = fingerprint.short(fingerprint.canonical([config, files.versions(), fingerprint.code(__name__)]))
    if known.get("key") == key and known.get("source") == source:
        return known
    layout = {"key": key, "source": source, **describe(config), "config": config}
    files.write_json(path, layout)
    return layout


def describe(config: dict[str, Any]) -> dict[str, Any]:
    """Blocks, their linears and the context length of the model that a config.json describes.

    `blocks[i]["linears"]` maps a linear's name to `rows`, `columns` and `input`, the first linear with the same input.
    Experts that are one parameter are one entry, with their number as `experts` and how many of them a token sees as
    `active`; an expert's own name is that of the entry with its number behind a dot. `blocks[i]["all_experts"]` tells
    whether the routers can be made to send every token to every expert; `blocks[i]["biases"]` names the linears that
    have a bias.
    `blocks[i]["dense"]` maps the other matrices, such as those that have no part in a product or choose experts, to
    their sizes: they stay as they are. What stands in several blocks is listed in one of them, the first that works
    with it; `blocks[i]["repeated"]` maps the parameters that are another's to their sizes. `blocks[i]["shared"]` maps
    the linears that this block and others work with, its own or not, to the numbers of these blocks. Besides: the
    number of `parameters` of every block, `outside` the blocks, of these `spared` after the first block, and of the
    `head` where it is not tied; hidden `width`,
    `vocabulary`, `dtype`, and the blocks' `prefix` in parameters' names.
    Raises GrampruneError for a config that describes no model, and for architectures that cannot be pruned.
    """
    import torch

    from gramprune.model.blocks import Blocks
    from gramprune.model.loading import empty_model, stated_dtype, unknown

    refuse_quantised(config)
    refuse_dtype(config)
    try:
        parsed = _parse(config)
        text, dtype = parsed.get_text_config(), stated_dtype(parsed)
        _refuse_absurd(text)
        blocks = Blocks(empty_model(parsed, torch.float32), _made_up)
    except GrampruneError:
        raise
    except Exception as error:  # of a dozen kinds, by family and by what is wrong
        raise GrampruneError(unknown(config, error)) from error
    kinds: dict[tuple[str, int | None], dict[str, Any]] = {}
    known: set[str] = set()
    described: list[dict[str, Any]] = []
    flow: dict[str, Any] = {}
    common = _common(blocks)
    fixed = {place for places in common.values() if not _is_one_matrix(blocks, places) for place in places}
    for index in range(len(blocks)):
        alike = f"{_kind(blocks[index])} {[*blocks.shared(index)]}"
        kind = alike, index if blocks.shared(index) else None  # each may work with another part of what is shared
        if kind not in kinds:
            try:
                unwanted = {name for place, name in fixed if place == index}
                kinds[kind], flow = _tried(blocks, index, flow, unwanted, quick=alike in known)
                known.add(alike)
            except GrampruneError:
                raise
            except Exception as error:  # whatever its code does
                raise GrampruneError(
                    f"model type {config['model_type']}: block {index} cannot be executed by itself "
                    f"({type(error).__name__}: {first_line(error)[:-1]}): it needs more than hidden states from the "
                    "blocks before it, or config.json is wrong; this architecture cannot be pruned yet."
                ) from error
        described.append({**kinds[kind], "repeated": {}, "shared": {}})
    for places in common.values():
        _give_to_one(blocks, described, places)
    return {
        "model_type": config["model_type"],
        "context": getattr(text, "max_position_embeddings", None),
        "dtype": str(dtype or "float32").removeprefix("torch."),
        "width": text.hidden_size,
        "flow": sum(tensor[0].numel() for tensor in flow.values()) // TRIED,
        "vocabulary": text.vocab_size,
        "prefix": blocks.prefix,
        **blocks.sizes,
        "spared": blocks.spared,
        "blocks": described,
    }


def refuse_quantised(config: dict[str, Any]) -> None:
    """Raises GrampruneError for a config.json that says that the weights are quantised, however."""
    for part in (config, config.get("text_config"), config.get("llm_config")):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key) if isinstance(part, dict) else None
            if found:
                how = found.get("quant_method") if isinstance(found, dict) else None
                raise GrampruneError(
                    f"config.json: {key} says that the weights are quantised ({how or 'by an unnamed method'}); "
                    "pruning needs a checkpoint in 16 or 32 bits: give the one that it was quantised from."
                )


def refuse_dtype(config: dict[str, Any]) -> None:
    """Raises GrampruneError for a dtype in config.json that weights cannot have."""
    for part in (config, config.get("text_config")):
        stated = (part.get("dtype") or part.get("torch_dtype")) if isinstance(part, dict) else None
        if stated and str(stated).removeprefix("torch.") not in DTYPES:
            raise GrampruneError(f"config.json: the dtype is {stated!r}; {suggest(str(stated), DTYPES)}")


def _refuse_absurd(text: Any) -> None:
    """Raises GrampruneError for sizes that no model has: what is made of them would take all of the memory."""
    for name, most in LARGEST.items():
        found = getattr(text, name, 1)
        if isinstance(found, int) and not 0 < found <= most:
            raise GrampruneError(f"config.json: {name} is {found:,}; expected a number from 1 to {most:,}.")


def _made_up(name: str, like: Any) -> Any:
    """Values to try a block with, of any shape in next to no memory: each row is the one before, moved by a place.

    None for a buffer, which has values: they may say what is causal.
    """
    import torch

    if not like.is_meta:
        return None
    generator = torch.Generator().manual_seed(len(name))
    if like.ndim < 2:
        return torch.rand(like.shape, generator=generator) + 0.5
    strides = tuple(range(1, like.ndim + 1))  # all different, so that an operand's strides tell its orientation
    reach = sum((size - 1) * stride for size, stride in zip(like.shape, strides, strict=True))
    line = torch.rand(reach + 1, generator=generator) - 0.5
    return torch.as_strided(line / like.shape[-1] ** 0.5, like.shape, strides)


def _kind(block: Any) -> str:
    """Blocks of one kind have the same code, shapes and switches."""
    shapes = {name: list(parameter.shape) for name, parameter in block.named_parameters()}
    switches = {
        f"{path}.{name}": value
        for path, module in block.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, str)) and name != "training"
    }
    return f"{type(block).__name__} {shapes} {switches}"


def _common(blocks: Any) -> dict[str, list[tuple[int, str]]]:
    """The parameters that stand in several places: where they stand in blocks, by number and name there."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index in range(len(blocks)):
        for name, one in blocks.shared(index).items():
            found[one].append((index, name))
    return found


def _is_one_matrix(blocks: Any, places: list[tuple[int, str]]) -> bool:
    """Whether a parameter is a matrix that stands in blocks only, in each once and by the same name."""
    index, name = places[0]
    everywhere = blocks.places[blocks.shared(index)[name]] == len(places)
    return everywhere and {other for _, other in places} == {name} and blocks[index].get_parameter(name).ndim == 2


def _give_to_one(blocks: Any, described: list[dict[str, Any]], places: list[tuple[int, str]]) -> None:
    """Leave a parameter to one of its blocks: the first that works with it, or else the first that has it."""
    from gramprune.model.products import name_of

    working = [index for index, name in places if name_of(name) in described[index]["linears"]]
    owner = (working or [places[0][0]])[0]
    for index, name in places:
        block, size = described[index], blocks[index].get_parameter(name).numel()
        name = name_of(name)
        if len(working) > 1 and index in working:
            block["shared"][name] = working
        if index != owner:
            block["repeated"][name] = size
            block["linears"].pop(name, None)
            block["dense"].pop(name, None)


def _tried(
    blocks: Any,
    index: int,
    flow: dict[str, Any],  # what earlier blocks have left
    fixed: set[str],  # parameters that stay dense, whatever they do
    quick: bool,  # one like it was tried before: products are only looked at, not computed
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a block consists of, seen while it works on a few tokens, and what it leaves for later ones.

    Two sequences that differ in their last token must give the same before it: else the model is no language model.
    Raises whatever the block raises.
    """
    import torch

    from gramprune.model.blocks import HIDDEN
    from gramprune.model.products import Products, name_of

    sizes = {name_of(name): parameter.numel() for name, parameter in blocks[index].named_parameters()}
    large = [name_of(name) for name, parameter in blocks[index].named_parameters() if parameter.ndim > 1]
    unwanted = set(map(name_of, fixed))
    hidden = torch.randn(2, TRIED, *blocks.shape, generator=torch.Generator().manual_seed(0))
    hidden[1, :-1] = hidden[0, :-1]
    with blocks.loaded(index) as block, Products(block, lambda name: name not in unwanted, not quick) as seen:
        _, left = blocks.forward(torch.zeros(2, TRIED, dtype=torch.int64), {**flow, HIDDEN: hidden})
    if not quick:
        _refuse_foresight(blocks, index, left[HIDDEN])
    if index and not quick:
        _refuse_hidden_gifts(blocks, index, flow | {HIDDEN: hidden}, left[HIDDEN])
    linears = _linears(seen, tokens=2 * TRIED)
    experts = max((linear.get("experts", 1) for linear in linears.values()), default=1)
    names = {name for name, _ in blocks[index].named_parameters()}
    described = {
        "linears": linears,
        "biases": [name for name in linears if f"{name}.bias" in names],
        **({"all_experts": _can_send_all(blocks, index, experts, flow | {HIDDEN: hidden})} if experts > 1 else {}),
        "dense": {name: sizes[name] for name in large if name not in linears},
        "parameters": sum(sizes.values()),
    }
    return described, left


def _can_send_all(blocks: Any, index: int, experts: int, flow: dict[str, Any]) -> bool:
    """Whether every token can be made to go to every expert."""
    import torch

    from gramprune.model.products import Products
    from gramprune.model.routing import all_experts

    tokens = torch.zeros(2, TRIED, dtype=torch.int64)
    quiet = suppress(Exception)
    with blocks.loaded(index) as block, all_experts(block, experts), Products(block, computed=False) as seen, quiet:
        blocks.forward(tokens, flow)
    went = [sum(map(len, seen.inputs[name])) for name, matrix in seen.matrices.items() if matrix.part is not None]
    return bool(went) and {*went} == {tokens.numel()}


def _refuse_foresight(blocks: Any, index: int, left: Any) -> None:
    """Raises GrampruneError if two sequences that differ in their last token differ before it."""
    import torch

    one, other = left[:, :-1].nan_to_num()
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max())):
        raise GrampruneError(
            f"model type {blocks.kind}: in block {index} a later token changes what earlier ones give, as in an "
            "encoder or a prefix seen as a whole: it is not a causal language model; give a model that continues text."
        )


def _refuse_hidden_gifts(blocks: Any, index: int, flow: dict[str, Any], left: Any) -> None:
    """Raises GrampruneError if a block uses what earlier ones give beside hidden states: that is not kept."""
    import torch

    gifts = tuple(torch.rand_like(each) if _is_float(each) else each for each in blocks.beside)
    if any(map(_is_float, gifts)):
        with blocks.loaded(index):
            try:
                blocks.instead = gifts
                _, other = blocks.forward(torch.zeros(2, TRIED, dtype=torch.int64), flow)
            finally:
                blocks.instead = None
        if not torch.equal(other["hidden"].nan_to_num(), left.nan_to_num()):
            raise GrampruneError(
                f"model type {blocks.kind}: block {index} takes more from the block before it than "
                "hidden states; this architecture cannot be pruned yet."
            )


def _is_float(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and value.is_floating_point()


def _linears(seen: Any, tokens: int) -> dict[str, dict[str, Any]]:
    """The linears of a block by name, all experts of a kind as one entry; not those that choose and weigh experts."""
    from gramprune.model.products import name_of

    experts = {(name.partition(".")[0], matrix.parts) for name, matrix in seen.matrices.items() if matrix.parts > 1}
    matrices = {name: matrix for name, matrix in seen.matrices.items() if not _routes(name, matrix, experts)}
    first = seen.shares(matrices)
    found: dict[str, dict[str, Any]] = {}
    for name, matrix in matrices.items():
        rows, columns = matrix.shape
        shared = name_of(matrices[first[name]].parameter)
        linear = found.setdefault(name_of(matrix.parameter), {"rows": rows, "columns": columns, "input": shared})
        if matrix.parts > 1:
            linear["experts"] = matrix.parts
            linear["active"] = linear.get("active", 0) + sum(map(len, seen.inputs[name])) / tokens
    return found


def _routes(name: str, matrix: Any, experts: set[tuple[str, int]]) -> bool:
    """Whether a matrix is a gate, which has one output, or a router, which has one for each expert beside it."""
    rows = matrix.shape[0]
    return rows == 1 or (matrix.parts == 1 and (name.partition(".")[0], rows) in experts)


def weights_of(linear: dict[str, Any]) -> int:
    """How many weights a linear has; all experts together."""
    return linear["rows"] * linear["columns"] * linear.get("experts", 1)


def parameters_of(block: dict[str, Any]) -> int:
    """How many parameters a block has that are not another's."""
    return block["parameters"] - sum(block["repeated"].values())


def summary(layout: dict[str, Any], exclude: list[str]) -> str:
    """What will be pruned, in a line: how many weights, which share of the blocks, and what stays dense.

    What stands in several blocks counts once; matrices of one list have one name, with a star for their numbers.
    """
    pruned, count, everything = 0, 0, 0
    dense: dict[str, int] = {}
    for block in layout["blocks"]:
        sizes = {name: weights_of(linear) for name, linear in block["linears"].items()}
        chosen = selected(sizes, exclude)
        pruned += sum(sizes[name] for name in chosen)
        count += sum(block["linears"][name].get("experts", 1) for name in chosen)
        left = {name: size for name, size in sizes.items() if name not in chosen} | block["dense"]
        for name, size in left.items():
            kind = re.sub(r"\b\d+\b", "*", name)
            dense[kind] = dense.get(kind, 0) + size
        everything += parameters_of(block)
    shares = ", ".join(f"{name} ({size / everything:.1%})" for name, size in dense.items())
    left_dense = f"; matrices that stay dense: {shares}" if shares else ""
    return (
        f"{len(layout['blocks'])} blocks, {count} linears with {pruned:,} weights are pruned, "
        f"{pruned / everything:.1%} of the blocks' parameters{left_dense}."
    )


def _parse(config: dict[str, Any]) -> Any:
    """The config as transformers reads it from a file, which decodes what JSON cannot say."""
    from transformers import AutoConfig

    from gramprune.model.loading import LOCAL

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, **LOCAL)


def selected(linears: Iterable[str], exclude: list[str]) -> list[str]:
    """The linears that no pattern such as `*.router` excludes."""
    return [name for name in linears if not any(fnmatch(name, pattern) for pattern in exclude)]
