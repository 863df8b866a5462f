"""The whole chain through real Snakemake, in a clone as a user has it."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from conftest import Clone
from monolithic import prune_in_memory
from safetensors.torch import load_file

from gramprune.storage import artifacts

RUNS = ["chain", "joint", "plain", "apart", "refined", "aimed"]
MATRICES = 3 * 7


def checkpoint(clone: Clone, run: str) -> Path:
    return clone.folder / "results" / "tiny" / run / "checkpoint"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


@pytest.mark.parametrize("run", RUNS)
def test_staged_pruning_equals_pruning_in_memory_bit_for_bit(clone, config, tiny_model, run):
    recipe = next(r for r in config["runs"] if r["name"] == run)
    tokens = artifacts.read(clone.folder / "results/tiny/calibration.safetensors").read("tokens")
    expected = prune_in_memory(tiny_model, tokens, recipe, config["batch_size"]).state_dict()
    found = tensors(checkpoint(clone, run))
    assert found.keys() == tensors(tiny_model).keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("run", RUNS)
def test_everything_but_the_pruned_matrices_is_copied_byte_for_byte(clone, tiny_model, run):
    folder = checkpoint(clone, run)
    dense, pruned = tensors(tiny_model), tensors(folder)
    differing = {key for key in dense if not torch.equal(dense[key], pruned[key])}
    assert len(differing) == MATRICES
    assert all("layers" in key and key.endswith("proj.weight") for key in differing)
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_model.iterdir()} | {"gramprune.json"}
    for path in tiny_model.iterdir():
        copy = folder / path.name
        if path.suffix == ".safetensors":  # the same header: keys, dtypes, places
            size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            assert copy.read_bytes()[:size] == path.read_bytes()[:size]
            assert copy.stat().st_size == path.stat().st_size
        else:
            assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("run", RUNS)
def test_the_checkpoint_loads_and_has_exactly_half_of_its_pruned_weights(clone, run):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint(clone, run))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            zeros = module.weight == 0
            assert (zeros.sum(dim=1) * 2 == zeros.shape[1]).all(), name
            if run == "joint":
                assert (zeros.reshape(-1, 4).sum(dim=1) == 2).all(), name
    recipe = json.loads((checkpoint(clone, run) / "gramprune.json").read_text())
    assert recipe["run"]["name"] == run
    assert recipe["sparsity"] == 0.5
    assert len(recipe["matrices"]) == MATRICES


def test_the_summary_has_the_dense_model_first_and_every_run(clone):
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    assert [row["run"] for row in rows] == ["dense", *RUNS]
    assert [row["sparsity"] for row in rows] == [0] + [0.5] * len(RUNS)
    assert [row["update"] for row in rows] == [None, "admm", "joint", "none", "admm", "none", "admm"]
    assert [row["refine"] for row in rows] == [None, "none", "none", "none", "none", "sparseswaps", "sparseswaps"]
    assert [row["target"] for row in rows] == [None, "own", "own", "own", "own", "own", "dense"]
    assert all(row["perplexity_evaluation"] > 1 and row["window_evaluation"] == 64 for row in rows)
    header = (clone.folder / "results/summary.csv").read_text().splitlines()[0]
    for column in ("model", "run", "mask", "refine", "update", "pattern", "granularity", "propagation", "sparsity"):
        assert column in header


def test_perplexity_is_that_of_the_windows_one_by_one(clone, tiny_model, texts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = json.loads((clone.folder / "results/tiny/chain/evaluation/perplexity_evaluation.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(checkpoint(clone, "chain"), dtype="auto").eval()
    tokens = AutoTokenizer.from_pretrained(tiny_model)(texts["evaluation"].read_text())["input_ids"]
    losses = []
    for start in range(0, len(tokens) - 63, 64):
        window = torch.tensor(tokens[start : start + 64])
        with torch.no_grad():
            logits = model(window[None]).logits[0].double()
        losses += (-logits.log_softmax(-1)[torch.arange(63), window[1:]]).tolist()
    assert result["predicted_tokens"] == len(losses)
    assert result["loss"] == pytest.approx(sum(losses) / len(losses), rel=2e-3)  # batches round bfloat16 differently


def test_layers_hold_every_measure_of_every_linear_and_stage(clone):
    rows = parquet.read_table(clone.folder / "results/layers.parquet").to_pylist()
    captured = [row for row in rows if row["stage"] == "capture"]
    updated = [row for row in rows if row["stage"] == "update"]
    refined = [row for row in rows if row["stage"] == "refine"]
    assert {row["run"] for row in captured} == {"dense", "chain", "joint", "refined", "aimed"}
    assert {row["run"] for row in updated} == {"chain", "joint", "apart", "aimed"}
    assert {row["run"] for row in refined} == {"dense", "refined", "aimed"}
    assert len(updated) == 4 * MATRICES
    assert all(row["tokens"] == 12 * 64 for row in captured)
    for row in updated + refined:
        assert row["error"] > 0 and row["sparsity"] == 0.5 and row["seconds"] > 0
    for row in refined:
        assert row["mask"].startswith("wanda") and row["refine"] == "sparseswaps"
        assert row["error"] < row["error_before"] and row["swaps"] >= row["swaps_max"] >= row["swaps_mean"] > 0
        assert row["curve"] == sorted(row["curve"], reverse=True)


def test_artifacts_say_what_they_were_made_from(clone, tiny_model):
    folder = clone.folder / "results/tiny"
    gram = artifacts.read(folder / "chain/block_001/gram.safetensors")
    inputs = artifacts.read(folder / "chain/block_001/inputs.safetensors")
    weights = artifacts.read(folder / "chain/block_000/weights.safetensors")
    fingerprint = json.loads((folder / "model.json").read_text())["fingerprint"]
    assert gram.provenance["inputs"]["inputs"] == inputs.digest
    assert inputs.provenance["inputs"]["weights"] == weights.digest
    assert weights.provenance["settings"]["options"]["damping"] == 0.1
    assert {linear["tokens"] for linear in gram.provenance["linears"].values()} == {12 * 64}
    assert {a.provenance["model"] for a in (gram, inputs, weights)} == {fingerprint}
    distinct = ["mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj"]
    assert gram.names == sorted(distinct + [f"{name}.sum" for name in distinct])
    aimed = artifacts.read(folder / "aimed/block_001/gram.safetensors")
    assert aimed.names == sorted(gram.names + [f"{name}.cross" for name in distinct])
    dense = artifacts.read(folder / "dense/block_001/inputs.safetensors")
    assert aimed.provenance["inputs"]["dense"] == dense.digest
    mask = artifacts.read(folder / "aimed/block_001/masks/wanda_0.5_row_to-dense+sparseswaps.safetensors")
    weights = artifacts.read(folder / "aimed/block_001/weights.safetensors")
    assert weights.provenance["inputs"]["mask"] == mask.digest
    assert weights.provenance["settings"]["target"] == {"method": "dense", "pull": 0.5}
    first = artifacts.read(folder / "aimed/block_000/weights.safetensors")
    assert first.provenance["settings"]["target"] == {"method": "own"}


def test_stored_sums_and_cross_products_are_those_of_the_linears_inputs(clone, tiny_model):
    from gramprune.model.blocks import open_blocks
    from gramprune.model.products import Products

    folder = clone.folder / "results/tiny"
    tokens = artifacts.read(folder / "calibration.safetensors").read("tokens")
    blocks, _ = open_blocks(tiny_model)
    inputs = []
    with blocks.loaded(1) as module:
        for trail in ("aimed", "dense"):
            hidden = artifacts.read(folder / trail / "block_001/inputs.safetensors").read("hidden")
            with Products(module) as seen:
                blocks.forward(tokens, {"hidden": hidden})
            inputs.append({name: x.double() for name, (x,) in seen.inputs.items()})
    gram = artifacts.read(folder / "aimed/block_001/gram.safetensors")
    for linear in gram.provenance["linears"].values():
        name = linear["gram"]
        pruned, dense = (x[name] for x in inputs)
        near = {"rtol": 0, "atol": 1e-2 * float((pruned.T @ pruned).abs().max())}  # batches round bfloat16 differently
        torch.testing.assert_close(gram.read(name).double(), pruned.T @ pruned, **near)
        torch.testing.assert_close(gram.read(f"{name}.cross").double(), pruned.T @ dense, **near)
        torch.testing.assert_close(gram.read(f"{name}.sum").double(), pruned.sum(dim=0), rtol=0, atol=1)
        assert not torch.equal(gram.read(name), gram.read(f"{name}.cross"))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_stages_see_every_linear_in_the_precision_and_with_the_target_of_the_run(clone, tiny_model, precision):
    import gramprune as gp
    from gramprune.model.weights import Weights
    from gramprune.stages.pruned import Grams, dense_linear, each_linear

    weights, dtype = Weights(tiny_model), getattr(torch, precision)
    grams = artifacts.read(clone.folder / "results/tiny/aimed/block_001/gram.safetensors")
    linears = grams.provenance["linears"]
    for target in ({"method": "own"}, {"method": "dense", "pull": 0.3}):
        seen, chosen = [], {"precision": precision, "target": target}
        for name, weight, gram in each_linear(Grams(grams), weights, chosen, "cpu", linears):
            first = linears[name]["gram"]
            expected = dense_linear(linears[name], weights).to(dtype)
            if target["method"] == "dense":
                cross = grams.read(f"{first}.cross").to(dtype)
                expected = gp.retarget_weight(expected, gram.matrix, cross, 0.3)
                assert not torch.equal(weight, dense_linear(linears[name], weights).to(dtype))
            assert weight.dtype == gram.matrix.dtype == gram.sums.dtype == dtype
            assert torch.equal(weight, expected) and torch.equal(gram.matrix, grams.read(first).to(dtype))
            assert torch.equal(gram.sums, grams.read(f"{first}.sum").to(dtype)) and gram.tokens == 12 * 64
            seen.append(name)
        assert sorted(seen) == sorted(linears)
    plain = artifacts.read(clone.folder / "results/tiny/chain/block_001/gram.safetensors")
    with pytest.raises(gp.GrampruneError, match=r"holds no 'mlp.down_proj.cross' but"):
        next(each_linear(Grams(plain), weights, chosen, "cpu", linears))


def test_stages_that_need_no_transformers_do_not_import_it(clone):
    import subprocess
    import sys

    stages = ["mask", "update", "assemble"]
    modules = [*(f"gramprune.stages.{stage}" for stage in stages), "gramprune.pruning.joint.admm"]
    code = (
        "import sys, importlib; list(map(importlib.import_module, sys.argv[1:])); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    code = "import sys, gramprune.experiment.checks, gramprune.stages.fetch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
