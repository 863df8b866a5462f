"""Bias compensation: weights and bias together against least squares over inputs with a column of ones, in float64."""

import json

import numpy as np
import pytest
import torch
from families import config as family
from problems import assert_sentence
from test_families import hidden_states, prune_in_stages

import gramprune as gp
from gramprune.errors import GrampruneError
from gramprune.experiment import checks
from gramprune.experiment.run import Run
from gramprune.pruning.bias import centred, compensated, mean_input
from gramprune.storage import artifacts


def problem(structure, tokens=60, rows=5, columns=8):
    """Inputs (tokens, columns) with means that differ, weight (rows, columns) and bias, float64."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) + 3 * torch.arange(columns)
    if structure == "dead":
        inputs[:, 2] = 0
    elif structure == "constant":
        inputs[:, 2] = 7
    elif structure == "dependent":
        inputs[:, 3] = inputs[:, 4] - 2 * inputs[:, 5]
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    gram = gp.Gram(inputs.T @ inputs, "block 1, linear", inputs.sum(dim=0), tokens)
    return inputs, weight, torch.randn(rows, generator=generator, dtype=torch.float64), gram


@pytest.mark.parametrize("structure", ["well", "dead", "constant", "dependent"])
@pytest.mark.parametrize("pattern", [0.5, "2:4"])
def test_weights_and_bias_are_the_least_squares_solution_for_their_mask(structure, pattern):
    inputs, weight, bias, gram = problem(structure)
    around = centred(gram)
    mask = gp.select_mask(weight, around, gp.Pattern.parse(pattern, "group" if ":" in str(pattern) else "row"), "wanda")
    new, _ = gp.update_weight(weight, around, mask, "exact", damping=1e-12)
    moved = compensated(bias, weight, new, mean_input(gram))
    ones = np.ones((len(inputs), 1))
    for row in range(len(weight)):
        kept = mask[row].numpy()
        columns = np.hstack([inputs[:, kept].numpy(), ones])
        wanted = (inputs @ weight[row] + bias[row]).numpy()
        best = np.linalg.lstsq(columns, wanted, rcond=None)[0]
        found = (inputs @ new[row] + moved[row]).numpy()
        np.testing.assert_allclose(found, columns @ best, rtol=1e-6, atol=1e-6)
    error = float((inputs @ weight.T + bias - inputs @ new.T - moved).square().sum())
    assert gp.layer_error(weight, new, around) == pytest.approx(error, rel=1e-6)


def test_a_constant_input_is_pruned_first_and_costs_nothing():
    inputs, weight, bias, gram = problem("constant")
    around = centred(gram)
    mask = gp.select_mask(weight, around, gp.Pattern.parse(1 / 8), "wanda")
    assert not mask[:, 2].any() and mask.sum() == mask.numel() - len(mask)
    moved = compensated(bias, weight, weight * mask, mean_input(gram))
    torch.testing.assert_close(inputs @ (weight * mask).T + moved, inputs @ weight.T + bias)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_in_float32_a_mean_a_thousand_times_the_deviation_is_no_reason_to_fail(scale):
    """Of a variance that float32 sums cannot tell from rounding nothing is made."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(500, 6, generator=generator) + scale
    around = centred(gp.Gram(inputs.T @ inputs, "linear", inputs.sum(dim=0), len(inputs)))
    assert around.matrix.isfinite().all() and (around.matrix.diagonal() >= 0).all()
    if scale == 1:
        expected = torch.cov(inputs.T, correction=0) * len(inputs)
        torch.testing.assert_close(around.matrix, expected, rtol=1e-3, atol=1e-1)


def test_without_the_inputs_sums_it_is_refused_by_name():
    with pytest.raises(GrampruneError, match=r"^block 4, k: bias compensation needs the inputs' sums"):
        centred(gp.Gram(torch.eye(3), "block 4, k"))


@pytest.mark.parametrize("change", [{"update": "none"}, {"update": "exact", "target": "dense"}])
def test_a_run_that_moves_no_bias_or_aims_elsewhere_is_refused(change):
    with pytest.raises(ValueError, match="bias 'compensated' moves biases"):
        Run.model_validate({"mask": "wanda", "sparsity": 0.5, "bias": "compensated", **change})


def test_a_model_without_biases_is_refused_while_planning(config_of_clone):
    with pytest.raises(GrampruneError) as caught:
        checks.check(config_of_clone)
    assert_sentence(caught, "run 'moved': bias: no linear of the model tiny", "has a bias", "leave it out")


@pytest.fixture
def config_of_clone(config, tmp_path):
    run = {"name": "moved", "sparsity": 0.5, "mask": "wanda", "update": "admm", "bias": "compensated"}
    return {**config, "results": str(tmp_path / "results"), "runs": [run]}


@pytest.mark.parametrize("name", ["opt", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_model_with_biases_comes_nearer_to_the_dense_one_and_no_other_bias_moves(name, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family(name, initializer_range=0.1))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 160, (12, 24), generator=torch.Generator().manual_seed(0))
    _, dense = hidden_states(tmp_path, tokens)
    off = {}
    for bias in ("kept", "compensated"):
        run = {"sparsity": 0.5, "mask": "wanda", "update": "exact", "propagation": "pruned", "bias": bias}
        (tmp_path / bias).mkdir()
        prune_in_stages(tmp_path, tokens, run, tmp_path / bias)
        _, left = hidden_states(tmp_path / bias / "checkpoint", tokens)
        off[bias] = float((left[2] - dense[2]).square().sum())
    assert off["compensated"] < off["kept"]
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "compensated/checkpoint")
    )
    moved = {key for key in before if key.endswith("bias") and not torch.equal(before[key], after[key])}
    linears = artifacts.read(tmp_path / "compensated/0_weights").provenance["linears"]
    assert len(moved) == 3 * len(linears) and not any("norm" in key or "ln" in key for key in moved)
    assert json.loads((tmp_path / "compensated/checkpoint/gramprune.json").read_text())["run"]["bias"] == "compensated"
