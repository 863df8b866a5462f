"""Pruning from Python, without the workflow: one linear, one block, a whole model.

    python examples/library.py                 on a small model that it trains itself; half a minute
    python examples/library.py ./my-model      on yours, a folder or hub id that fits into memory

Cells (`# %%`) can be run one by one in an editor.
"""

# %% A model, and text. Yours, or a Llama of 25,000 weights that reads bytes, trained for a few seconds.
import sys
from pydoc_data.topics import topics

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import gramprune as gp

torch.manual_seed(0)
text = "\n".join(topics[name] for name in sorted(topics))
length = 96

if len(sys.argv) > 1:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
    tokens = AutoTokenizer.from_pretrained(sys.argv[1])(text[:100_000], return_tensors="pt")["input_ids"][0]
else:
    torch.set_num_threads(1)  # its matrices are so small that several would wait for each other
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, tie_word_embeddings=True, **sizes))
    tokens = torch.tensor(list(text.encode()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(250):
        starts = torch.randint(len(tokens) - 50_000, (16,)).tolist()
        batch = torch.stack([tokens[start : start + length] for start in starts])
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
model.eval().requires_grad_(False)
windows = tokens[-(len(tokens) // length) * length :].view(-1, length)[-160:]
calibration, evaluation = windows[:128], windows[128:]  # more text is better: 128 x 2048 tokens are usual


def perplexity() -> float:
    """Of the model as it is now."""
    return float(model(input_ids=evaluation, labels=evaluation).loss.exp())


print(f"dense: perplexity {perplexity():.3f}")


# %% What enters the linears of a block. Of it, its Gram matrix is all that pruning needs.
def grams_of(block: nn.Module) -> dict[str, gp.Gram]:
    """By linear, XᵀX of its inputs over the calibration text, while the model is as it is now."""
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        rows = inputs.flatten(0, -2).float()  # (tokens, in)
        sums[name] = sums.get(name, 0) + rows.T @ rows

    linears = [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda _, args, name=name: add(name, args[0])) for name, m in linears]
    for batch in calibration.split(16):
        model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    return {name: gp.Gram(matrix, name) for name, matrix in sums.items()}


blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers)
grams = grams_of(blocks[0])

# %% One linear: three quarters of its weights go, by recipes that differ in one thing each.
name, gram = list(grams.items())[-1]
linear = blocks[0].get_submodule(name)
weight = linear.weight
pattern = gp.Pattern.parse(0.75)  # of every row; "2:4" would be 2 of every 4 neighbours
outputs = gp.layer_error(weight, torch.zeros_like(weight), gram)


def show(what: str, new: torch.Tensor) -> None:
    """How much of the outputs is lost."""
    print(f"  {what:34}{gp.layer_error(weight, new, gram) / outputs:8.2%} of the outputs is lost")


print(f"one linear, {name} of block 0, {tuple(weight.shape)}:")
mask = gp.select_mask(weight, gram, pattern, method="magnitude")
show("magnitude", weight * mask)
mask = gp.select_mask(weight, gram, pattern, method="wanda")
show("wanda", weight * mask)
better, _ = gp.refine_mask(weight, gram, mask, pattern, method="sparseswaps")
show("wanda, better mask", weight * better)
new, _ = gp.update_weight(weight, gram, mask, method="exact")
show("wanda, best weights for the mask", new)
mask, new, stats = gp.prune_weight(weight, gram, pattern, method="alps")
show("alps, mask and weights together", new)
assert ((~mask).sum(dim=1) == round(0.75 * mask.shape[1])).all()  # exactly, in every row


# %% One block: the same for all its linears. What is written back has the model's dtype.
def prune_block(block: nn.Module, method: str) -> None:
    """Prune all linears of a block, on what enters them now."""
    for name, gram in grams_of(block).items():
        weight = block.get_submodule(name).weight
        weight.copy_(gp.prune_weight(weight, gram, pattern, method)[1])


dense = {name: value.clone() for name, value in model.state_dict().items()}
prune_block(blocks[0], "admm")
print(f"one block pruned: perplexity {perplexity():.3f}")
model.load_state_dict(dense)

# %% A model: block after block, so that each makes up for what the pruned ones before it give.
for method in ("sparsegpt", "admm"):
    for block in blocks:
        prune_block(block, method)
    weights = [module.weight for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    share = sum(int((weight == 0).sum()) for weight in weights) / sum(map(torch.Tensor.numel, weights))
    print(f"all blocks, {method}: perplexity {perplexity():.3f} with {share:.2%} zeros")
    if method != "admm":
        model.load_state_dict(dense)

# %% To keep it: `model.save_pretrained("pruned")`. Not done here, and what the workflow has beyond this: one block in
# memory, experts and other layers than nn.Linear, what a killed process has done, which recipe was which, the report.
