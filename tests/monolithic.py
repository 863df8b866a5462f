"""The same pruning without stages: whole models in memory, plain loops, one Gram matrix per linear."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import gramprune as gp


def load(folder: Path, place: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> torch.nn.Module:
    """The whole model. place: by default every weight gets memory of its own, as in the stages.

    transformers maps files, where a weight may begin anywhere, and the order of a product's sums depends on that.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    for parameter in model.parameters():
        parameter.data = place(parameter.data)
    return model


@torch.no_grad()
def prune_in_memory(folder: Path, tokens: torch.Tensor, run: dict[str, Any], batch_size: int) -> torch.nn.Module:
    """The pruned model. run: as in config.yaml, every method by its name."""
    model, untouched = load(folder), load(folder)
    pattern = gp.Pattern.parse(run["sparsity"], run.get("granularity", "row"))
    blocks = block_list(model)
    later = []
    for block, other in zip(blocks, block_list(untouched), strict=True):
        linears, others = linears_of(block), linears_of(other)
        grams, crosses = {}, {}
        for batch in tokens.split(batch_size):
            seen, dense_seen = observe(model, linears, batch), observe(untouched, others, batch)
            for name, rows in seen.items():
                add(grams, name, rows, rows)
                add(crosses, name, rows, dense_seen[name])
        for name in grams:  # a linear that is never called as a module has none, and stays dense
            weight = linears[name].weight
            dense = (weight.T if isinstance(linears[name], Conv1D) else weight).float()
            if run.get("target") == "dense":
                dense = gp.retarget_weight(dense, grams[name], crosses[name])
            new = prune_one(dense, grams[name], pattern, run)
            later.append((weight, (new.T if isinstance(linears[name], Conv1D) else new).to(weight.dtype)))
        if run.get("propagation", "pruned") == "pruned":
            write(later)
    write(later)
    return model


def prune_one(dense: torch.Tensor, gram: torch.Tensor, pattern: gp.Pattern, run: dict[str, Any]) -> torch.Tensor:
    if run.get("update") == "joint":
        return gp.prune_weight(dense, gram, pattern, method=run["mask"])[1]
    mask = gp.select_mask(dense, gram, pattern, method=run["mask"])
    mask, _ = gp.refine_mask(dense, gram, mask, pattern, method=run.get("refine", "none"))
    return gp.update_weight(dense, gram, mask, method=run.get("update", "none"))[0]


def observe(model, linears, batch) -> dict[str, torch.Tensor]:
    """Every linear's input (tokens, in) in a forward pass of the whole model."""
    seen = {}

    def hook(name):
        return lambda module, args: seen.update({name: args[0].reshape(-1, args[0].shape[-1]).float()})

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears.items()]
    model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def add(matrices, name, left, right) -> None:
    """`matrices[name] += leftᵀ right`."""
    start = matrices.get(name, torch.zeros(left.shape[1], left.shape[1]))
    matrices[name] = torch.addmm(start, left.T, right)


def linears_of(block) -> dict[str, torch.nn.Module]:
    return {name: m for name, m in block.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}


def block_list(model):
    count = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


def write(later) -> None:
    while later:
        weight, new = later.pop()
        weight.copy_(new)
