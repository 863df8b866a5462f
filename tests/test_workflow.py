"""The whole chain through real Snakemake, in a clone as a user has it."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from conftest import Clone
from monolithic import prune_in_memory
from safetensors.torch import load_file

from gramprune import artifacts

RUNS = ["chain", "joint", "plain", "apart"]
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
    assert [row["sparsity"] for row in rows] == [0, 0.5, 0.5, 0.5, 0.5]
    assert [row["update"] for row in rows] == [None, "admm", "joint", "none", "admm"]
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
    assert {row["run"] for row in captured} == {"dense", "chain", "joint"}
    assert {row["run"] for row in updated} == {"chain", "joint", "apart"}
    assert len(updated) == 3 * MATRICES
    assert all(row["tokens"] == 12 * 64 for row in captured)
    assert all(row["error"] > 0 and row["sparsity"] == 0.5 and row["seconds"] > 0 for row in updated)


def test_artifacts_say_what_they_were_made_from(clone, tiny_model):
    folder = clone.folder / "results/tiny"
    gram = artifacts.read(folder / "chain/block_001/gram.safetensors")
    inputs = artifacts.read(folder / "chain/block_001/inputs.safetensors")
    weights = artifacts.read(folder / "chain/block_000/weights.safetensors")
    fingerprint = json.loads((folder / "model.json").read_text())["fingerprint"]
    assert gram.provenance["inputs"]["inputs"] == inputs.digest
    assert inputs.provenance["inputs"]["weights"] == weights.digest
    assert weights.provenance["settings"]["options"]["damping"] == 0.1
    assert gram.provenance["tokens"] == 12 * 64
    assert {a.provenance["model"] for a in (gram, inputs, weights)} == {fingerprint}
    assert gram.names == ["mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj"]


def test_stages_that_need_no_transformers_do_not_import_it(clone):
    import subprocess
    import sys

    stages = ["gramprune.stages.mask", "gramprune.stages.update", "gramprune.stages.assemble", "gramprune.masks.admm"]
    code = (
        "import sys, importlib; list(map(importlib.import_module, sys.argv[1:])); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *stages], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    code = "import sys; import gramprune, gramprune.checks, gramprune.stages.fetch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
