"""The same pruning without stages: the whole model in memory, plain loops, one Gram matrix per linear."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import gramprune as gp


@torch.no_grad()
def prune_in_memory(folder: Path, tokens: torch.Tensor, run: dict[str, Any], batch_size: int) -> torch.nn.Module:
    """The pruned model. run: sparsity, granularity, mask, update ("none", "admm", "joint"), propagation."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    pattern = gp.Pattern.parse(run["sparsity"], run.get("granularity", "row"))
    blocks = block_list(model)
    later = []
    for block in blocks:
        linears = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
        grams = observe(model, linears, tokens, batch_size)
        for name in grams:  # a linear that is never called as a module has none, and stays dense
            weight = linears[name].weight
            dense = (weight.T if isinstance(linears[name], Conv1D) else weight).float()
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
    return gp.update_weight(dense, gram, mask, method=run.get("update", "none"))[0]


def observe(model, linears, tokens, batch_size) -> dict[str, torch.Tensor]:
    """XᵀX of every linear's input, from forward passes of the whole model."""
    grams = {}

    def hook(name):
        def add(module, args):
            rows = args[0].reshape(-1, args[0].shape[-1]).float()
            start = grams.get(name, torch.zeros(rows.shape[1], rows.shape[1]))
            grams[name] = torch.addmm(start, rows.T, rows)

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears.items()]
    for batch in tokens.split(batch_size):
        model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return grams


def block_list(model):
    count = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


def write(later) -> None:
    while later:
        weight, new = later.pop()
        weight.copy_(new)
