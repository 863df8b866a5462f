"""Every method and the stages on a pretended GPU: nothing meets a tensor of the CPU, results are the same."""

from contextlib import nullcontext

import pytest
import torch
from families import config
from pretended_gpu import DEVICE, Pretended, gpu
from problems import IN, TOKENS, assert_near, problem
from safetensors.torch import load_file
from test_families import prune_in_stages
from test_reconstruct import problem as small_block
from torch import Tensor

from gramprune import Gram, Pattern, layer_error, prune_weight, refine_mask, select_mask, update_weight
from gramprune.pruning import joint, masks, methods, refine, updates
from gramprune.pruning.bias import centred, compensated, mean_input
from gramprune.pruning.gram import accumulate
from gramprune.pruning.reconstruct import train_kept
from gramprune.pruning.target import retarget_weight
from gramprune.stages.observe import _add
from gramprune.stages.pruned import measures, plain

pytestmark = pytest.mark.bits

FORMS = [(0.5, "row"), (0.5, "matrix"), ("2:4", "row")]
EVERY = [
    *(("mask", method) for method in masks.names()),
    *(("refine", method) for method in methods.names(refine)),
    *(("update", method) for method in methods.names(updates)),
    *(("joint", method) for method in methods.names(joint)),
]


def call(kind: str, method: str, pattern: Pattern, weight: Tensor, gram: Gram) -> tuple:
    """What a method gives, and what a stage measures of it."""
    mask = select_mask(weight, gram, pattern, "wanda")
    if kind == "mask":
        mask, new, stats = select_mask(weight, gram, pattern, method), weight, {}
    elif kind == "refine":
        mask, stats = refine_mask(weight, gram, mask, pattern, method)
        new = weight
    elif kind == "update":
        new, stats = update_weight(weight, gram, mask, method)
    else:
        mask, new, stats = prune_weight(weight, gram, pattern, method)
    pattern.check_mask(mask, "the result")
    return mask, new, plain(stats), measures(weight, new.where(mask, 0), gram)


def on_both(compute, *tensors: Tensor) -> list:
    """What a function of tensors gives on the CPU and on the pretended GPU, the latter brought back."""
    expected = compute(*(tensor.clone() for tensor in tensors))
    with gpu():
        found = compute(*(tensor.to(DEVICE) for tensor in tensors))
        flat = found if isinstance(found, (tuple, list)) else (found,)
        assert all(isinstance(each, Pretended) for each in flat if isinstance(each, Tensor))
        found = [each.cpu() if isinstance(each, Tensor) else each for each in flat]
    return list(zip(expected if isinstance(expected, (tuple, list)) else (expected,), found, strict=True))


def assert_same(pairs: list) -> None:
    for expected, found in pairs:
        assert type(expected) is type(found)
        assert torch.equal(expected, found) if isinstance(expected, Tensor) else expected == found


@pytest.mark.parametrize("form", FORMS, ids=lambda form: Pattern.parse(*form).slug)
@pytest.mark.parametrize("kind, method", EVERY)
def test_a_method_gives_on_a_gpu_the_bits_of_the_cpu(kind, method, form):
    p, pattern = problem("dead_inputs", torch.float32), Pattern.parse(*form)

    def compute(weight: Tensor, matrix: Tensor, sums: Tensor) -> tuple:
        return call(kind, method, pattern, weight, Gram(matrix, sums=sums, tokens=TOKENS))

    assert_same(on_both(compute, p.weight, p.gram, p.inputs.sum(dim=0)))


def test_targets_biases_and_errors_are_those_of_the_cpu():
    p, bias = problem("well_conditioned", torch.float32), torch.linspace(-1, 1, 6)

    def compute(weight: Tensor, inputs: Tensor, bias: Tensor) -> tuple:
        matrix, cross = (torch.zeros(IN, IN, device=inputs.device) for _ in range(2))
        accumulate(matrix, inputs)
        accumulate(cross, inputs, 0.9 * inputs)
        gram = Gram(matrix, sums=inputs.sum(dim=0), tokens=TOKENS)
        new = weight.where(weight.abs() > 0.6, 0)
        aimed, around = retarget_weight(weight, gram, cross), centred(gram)
        return aimed, around.matrix, compensated(bias, weight, new, mean_input(gram)), layer_error(aimed, new, around)

    assert_same(on_both(compute, p.weight, p.inputs, bias))


def test_what_capture_keeps_of_inputs_is_that_of_the_cpu():
    inputs = problem("well_conditioned", torch.float32).inputs.reshape(2, -1, IN)

    def compute(inputs: Tensor) -> list[Tensor]:
        kept: dict[str, Tensor] = {}
        for _ in range(2):
            _add(kept, "q_proj", inputs, 0.9 * inputs, torch.float32)
        return list(kept.values())

    assert_same(on_both(compute, inputs))


def test_tensor_cores_sum_in_float32_what_the_cpu_sums(monkeypatch):
    monkeypatch.setattr("gramprune.pruning.gram.PRODUCT", 5)  # several pieces, the last one smaller
    p = problem("well_conditioned", torch.bfloat16)

    def compute(inputs: Tensor) -> tuple[Tensor, Tensor]:
        matrix, cross = (torch.zeros(IN, IN, device=inputs.device) for _ in range(2))
        accumulate(matrix, inputs)
        accumulate(cross, inputs, inputs.flip(0))
        return matrix, cross

    for expected, found in on_both(compute, p.inputs):
        assert found.dtype == torch.float32
        assert_near(found, expected.double())


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there: there + torch.ones(4),
        lambda there: there @ torch.zeros(4, 4),
        lambda there: there[torch.arange(2)],
        lambda there: there.where(there > 0, torch.zeros(4, 4)),
        lambda there: torch.cat([there, torch.ones(1, 4)]),
        lambda there: there.cpu().add_(there),
    ],
)
def test_a_cpu_tensor_that_meets_one_on_the_gpu_is_refused(mixed):
    with gpu():
        there = torch.ones(4, 4).to(DEVICE)
        for allowed in (there + torch.tensor(2.0), there.new_zeros(4) + there, there[torch.arange(2, device=DEVICE)]):
            assert allowed.device == DEVICE
        with pytest.raises(RuntimeError, match="same device"):
            mixed(there)
    assert not torch.ones(4).is_cuda


def test_training_of_kept_weights_is_that_of_the_cpu():
    def compute(inputs: Tensor, aims: Tensor, weight: Tensor, mask: Tensor) -> tuple:
        weight = weight.detach().clone().requires_grad_()
        result = train_kept(
            lambda numbers: [torch.stack([inputs[number] for number in numbers]) @ weight.T],
            lambda numbers: [torch.stack([aims[number] for number in numbers])],
            [weight],
            [mask],
            len(inputs),
            epochs=2,
        )
        return weight.detach(), result["losses"], result["best"]

    assert_same(on_both(compute, *small_block()))


@pytest.mark.parametrize(
    "family, more", [("llama", {"target": "dense"}), ("mixtral", {}), ("gpt2", {"bias": "compensated"})]
)
def test_the_stages_make_on_a_gpu_the_model_of_the_cpu(family, more, tmp_path):
    """All of them, from hidden states to training."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config(family, initializer_range=0.1, num_hidden_layers=2))
    whole.save_pretrained(tmp_path / "model")
    tokens = torch.randint(0, 160, (4, 24), generator=torch.Generator().manual_seed(0))
    run = {"mask": "wanda", "update": "admm", "sparsity": 0.5, "propagation": "pruned", **more}
    run["reconstruct"] = {"method": "block", "epochs": 1}
    for device in ("cpu", str(DEVICE)):
        (tmp_path / device).mkdir()
        with gpu() if device != "cpu" else nullcontext():
            prune_in_stages(tmp_path / "model", tokens, run, tmp_path / device, device)
    for name in ("0_reconstructed", "run_1_inputs", "run_1_gram", "1_mask", "1_weights", "1_reconstructed"):
        expected, found = (load_file(tmp_path / device / name) for device in ("cpu", str(DEVICE)))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[each], found[each]) for each in expected), name
