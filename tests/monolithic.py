"""The same pruning without stages: whole models in memory, plain loops, one Gram matrix per linear."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
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
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", experts_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = place(parameter.data)
    return model


@torch.no_grad()
def prune_in_memory(folder: Path, tokens: torch.Tensor, run: dict[str, Any], batch_size: int) -> torch.nn.Module:
    """The pruned model. run: as in config.yaml, every method by its name.

    What several blocks share is pruned with the first of them, by what enters it in all blocks of the dense model.
    """
    model, untouched = untied(load(folder)), load(folder)
    pattern = gp.Pattern.parse(run["sparsity"], run.get("granularity", "row"))
    blocks, dense_blocks = block_list(model), block_list(untouched)
    sums, made = shared_grams(untouched, tokens, batch_size), {}
    later, final = [], []
    for block, other in zip(blocks, dense_blocks, strict=True):
        grams, crosses = {}, {}
        for batch in tokens.split(batch_size):
            seen, dense_seen = observe(model, block, batch), observe(untouched, other, batch)
            for name, (_, rows) in seen.items():
                add(grams, name, rows, rows)
                if "experts" not in name:
                    add(crosses, name, rows, dense_seen[name][1])
        seen, dense_seen = observe(model, block, tokens), observe(untouched, other, tokens)
        for name, (weight, _) in seen.items():  # (out, in), a view of what is stored
            stored = dense_seen[name][0]
            place = stored.data_ptr()
            if place not in made:
                dense, gram = weight.float().contiguous(), sums.get(place, grams[name])
                if run.get("target") == "dense" and "experts" not in name and place not in sums:
                    dense = gp.retarget_weight(dense, gram, crosses[name])
                made[place] = prune_one(dense, gram, pattern, run).to(weight.dtype)
                final.append((stored, made[place]))
            later.append((weight, made[place]))
        if run.get("propagation", "pruned") == "pruned":
            write(later)
    write(final)
    return untouched


def untied(model: torch.nn.Module) -> torch.nn.Module:
    """The same model, where every block has matrices of its own."""
    for module in block_list(model).modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.data.clone(), parameter.requires_grad)
    return model


def shared_grams(model: torch.nn.Module, tokens: torch.Tensor, batch_size: int, dtype=torch.float32) -> dict:
    """Where in memory a matrix is that several blocks work with, and the sum of its Gram matrices over these blocks."""
    found = defaultdict(list)
    for block in block_list(model):
        grams, weights = {}, {}
        for batch in tokens.split(batch_size):
            for name, (weight, rows) in observe(model, block, batch).items():
                weights[name] = weight.data_ptr()
                add(grams, name, rows.to(dtype), rows.to(dtype))
        for name, gram in grams.items():
            found[weights[name]].append(gram)
    return {place: sum(grams[1:], grams[0]) for place, grams in found.items() if len(grams) > 1}


def prune_one(dense: torch.Tensor, gram: torch.Tensor, pattern: gp.Pattern, run: dict[str, Any]) -> torch.Tensor:
    if run.get("update") == "joint":
        return gp.prune_weight(dense, gram, pattern, method=run["mask"])[1]
    mask = gp.select_mask(dense, gram, pattern, method=run["mask"])
    mask, _ = gp.refine_mask(dense, gram, mask, pattern, method=run.get("refine", "none"))
    return gp.update_weight(dense, gram, mask, method=run.get("update", "none"))[0]


def observe(model, block, batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weight (out, in) and input (tokens, in) of every linear of a block in a forward pass of the whole model.

    Linears are those that are called as modules, and those of fused experts, which are asked one by one what they give
    for the tokens that the router sends them.
    """
    seen = {}

    def called(module, args, name):
        transposed = isinstance(module, Conv1D)
        seen[name] = (module.weight.T if transposed else module.weight), args[0].reshape(-1, args[0].shape[-1]).float()

    def routed(module, args, name):
        hidden, transposed = args[0].reshape(-1, args[0].shape[-1]), getattr(module, "is_transposed", True)
        for expert in range(len(module.gate_up_proj)):
            if len(args) > 1:
                rows = hidden[torch.where((args[1] == expert).T)[1]]
            else:  # Llama 4: every expert has all tokens, which are zero where they go elsewhere
                rows = hidden.chunk(len(module.gate_up_proj))[expert]
            give = module.gate_up_proj[expert], module.down_proj[expert]
            up, down = (weight.T for weight in give) if transposed else give
            given = (rows[None] @ up.T[None])[0] if len(args) == 1 else rows @ up.T
            given = given + (module.gate_up_proj_bias[expert] if getattr(module, "has_bias", False) else 0)
            if hasattr(module, "_apply_gate"):
                inner = module._apply_gate(given)
            else:
                gate, inner = given.chunk(2, dim=-1)
                inner = inner * module.act_fn(gate)
            here = (rows != 0).any(dim=1)
            seen[f"{name}.gate_up_proj.{expert}"] = up, rows[here].float()
            seen[f"{name}.down_proj.{expert}"] = down, inner[here].float()

    def stepped(module, args, output, mixer, name):
        seen[name] = mixer.dt_proj.weight, output[..., : mixer.time_step_rank].flatten(0, -2).float()

    handles = []
    for name, module in block.named_modules():
        if hasattr(module, "dt_proj"):  # Mamba takes its weight, and does not call it
            take = partial(stepped, mixer=module, name=f"{name}.dt_proj")
            handles.append(module.x_proj.register_forward_hook(take))
        routes = {"router", "shared_expert_gate"} & {*name.split(".")}
        if isinstance(module, torch.nn.Linear | Conv1D) and not routes:
            handles.append(module.register_forward_pre_hook(partial(called, name=name)))
        elif name.endswith("experts") and hasattr(module, "gate_up_proj"):
            handles.append(module.register_forward_pre_hook(partial(routed, name=name)))
    model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (weight, rows) for name, (weight, rows) in seen.items() if len(rows)}


def add(matrices, name, left, right) -> None:
    """`matrices[name] += leftᵀ right`."""
    start = matrices.get(name, torch.zeros(left.shape[1], left.shape[1], dtype=left.dtype))
    matrices[name] = torch.addmm(start, left.T, right)


def block_list(model):
    count = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


def write(later) -> None:
    while later:
        weight, new = later.pop()
        weight.copy_(new)
