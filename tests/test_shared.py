"""Matrices that several blocks work with, as in Zamba: pruned once, for the sum of what enters them in all of these."""

import json
from collections import Counter

import pytest
import torch
import yaml
from conftest import Clone
from families import config as config_of
from monolithic import block_list, load, observe, prune_in_memory, shared_grams
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_families import prune_in_stages

import gramprune as gp
from gramprune.experiment import checks, pipeline
from gramprune.model import layout
from gramprune.model.keys import Keys
from gramprune.model.loading import empty_model, parse_config
from gramprune.model.weights import Weights
from gramprune.report.read import read
from gramprune.stages.pruned import Grams, dense_linear
from gramprune.storage import artifacts

RUNS = {
    "chain": {"sparsity": 0.5, "mask": "wanda", "update": "admm"},
    "chain 2:4": {"sparsity": "2:4", "mask": "admm", "update": "joint"},
    "apart": {"sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "dense"},
    "mask": {"sparsity": "2:4", "mask": "wanda"},
}
SMALL = {"vocab_size": 300, "max_position_embeddings": 128}  # of the tests' tokenizer


def save(name, folder, **changes):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(name, initializer_range=0.1, **changes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["zamba", "zamba2"])
def folder(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 160, (6, 24), generator=torch.Generator().manual_seed(1))


def q_proj(described):
    """The name of a matrix that blocks 0 and 2 work with."""
    return next(name for name in described["blocks"][0]["shared"] if name.endswith("q_proj"))


def described_in(folder):
    return layout.describe(json.loads((folder / "config.json").read_text()))


@pytest.mark.bits
@pytest.mark.parametrize("name", RUNS)
def test_pruned_in_stages_equals_pruned_in_memory_and_every_zero_counts_once(folder, tokens, name, tmp_path):
    run = {"propagation": "pruned", **RUNS[name]}
    prune_in_stages(folder, tokens, run, tmp_path)
    found, expected = load(tmp_path / "checkpoint"), prune_in_memory(folder, tokens, run, batch_size=2)
    state, dense = expected.state_dict(), load(folder).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    told = type(found).from_pretrained(tmp_path / "checkpoint", output_loading_info=True)[1]
    assert not told["missing_keys"] and not told["unexpected_keys"]
    matrices = json.loads((tmp_path / "checkpoint/gramprune.json").read_text())["matrices"]
    keys = Counter(key for matrix in matrices for key in matrix["keys"])
    assert set(keys.values()) == {1}
    described = described_in(folder)
    assert len(keys) == sum(len(block["linears"]) for block in described["blocks"])
    one, other = (
        block.get_submodule(q_proj(described)).weight for place, block in enumerate(block_list(found)) if place != 1
    )
    assert one is other and 2 * int((one == 0).sum()) == one.numel()
    changed = {key for key, value in state.items() if not torch.equal(value, dense[key])}
    tied = found.all_tied_weights_keys
    assert {tied.get(key, key) for key in changed} == {tied.get(key, key) for key in keys}


def test_the_gram_matrix_is_the_sum_over_the_blocks_in_the_dense_model(folder, tokens, tmp_path):
    """Against float64; what sees the same input in one block alone has the Gram matrix of that block."""
    prune_in_stages(folder, tokens, {**RUNS["mask"], "propagation": "pruned"}, tmp_path)
    described, whole = described_in(folder), load(folder)
    dense = {each: artifacts.read(tmp_path / f"dense_{each}_gram") for each in (0, 2)}
    grams = Grams(dense[0], dense)
    expected = shared_grams(whole, tokens, 2, torch.float64)
    seen = observe(whole, block_list(whole)[0], tokens)
    assert set(grams.linears) == set(described["blocks"][0]["linears"]) == set(seen)
    for name, (weight, rows) in seen.items():
        total = grams.read(grams.terms(name), "", "cpu", torch.float64)
        here = (rows.double().T @ rows.double()).detach()
        shared = name in described["blocks"][0]["shared"]
        torch.testing.assert_close(total, expected[weight.data_ptr()] if shared else here, rtol=1e-4, atol=1e-3)
        assert shared == (float((total - here).norm() / here.norm()) > 0.1)
        if shared:
            assert Grams(dense[2]).linears.keys().isdisjoint([name]), "the later block does not prune it"
            mask = gp.select_mask(weight.double(), expected[weight.data_ptr()], gp.Pattern.parse("2:4"), "wanda")
            made = artifacts.read(tmp_path / "0_mask")
            assert torch.equal(made.read_mask(f"{name}.mask", weight.shape[1]), mask)
            assert torch.equal(dense_linear(grams.linears[name], Weights(folder)), weight)


def test_a_matrix_that_is_stored_for_two_blocks_is_refused(folder, tmp_path):
    """transformers would not tie them any more when one is pruned."""
    described = described_in(folder)
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name, (first, again) = q_proj(described), (f"{described['prefix']}.{block}." for block in (0, 2))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, f"{again}{name}.weight": tensors[f"{first}{name}.weight"].clone()}, path, {"format": "pt"})
    keys = Keys(empty_model(parse_config(tmp_path), torch.float32), Weights(tmp_path))
    with pytest.raises(gp.GrampruneError, match=r"layers\.2\..+ and .+layers\.0\..+, which are one matrix"):
        keys.place(f"{again}{name}.weight")


@pytest.fixture(scope="module")
def zamba(config, tokenizer, tmp_path_factory):
    """A clone in which Zamba2 with a block of its own between two that share is pruned by chains and apart."""
    folder = tmp_path_factory.mktemp("zamba")
    kinds = ["hybrid", "mamba", "hybrid"]
    save("zamba2", folder / "model", layers_block_type=kinds, num_mem_blocks=1, **SMALL)
    tokenizer.save_pretrained(folder / "model")
    (folder / "clone").mkdir()
    clone = Clone(folder / "clone")
    runs = [
        {"name": "chain", **RUNS["chain"]},
        {"name": "aimed", **RUNS["chain"], "refine": "sparseswaps", "target": "dense"},
        {"name": "apart", "sparsity": "2:4", "mask": "admm", "update": "joint", "propagation": "dense"},
    ]
    runs.append(
        {
            "name": "trained",
            **RUNS["chain"],
            "reconstruct": {"method": "block", "epochs": 2, "train": ["weights", "norms"]},
        }
    )
    clone.write({**config, "model": str(folder / "model"), "dtype": "auto", "runs": runs})
    clone.run()
    return clone


@pytest.mark.slow
@pytest.mark.bits
def test_the_workflow_prunes_them_as_it_is_done_in_memory(zamba, config):
    results = zamba.folder / "results"
    settings = yaml.safe_load((zamba.folder / "config.yaml").read_text())
    with safe_open(results / "model/calibration.safetensors", "pt") as file:
        calibration = file.get_tensor("tokens")
    for run in settings["runs"][:3]:
        found = load(results / "model" / run["name"] / "checkpoint").state_dict()
        expected = prune_in_memory(zamba.folder.parent / "model", calibration, run, config["batch_size"]).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items()), run["name"]
    assert not zamba.planned()
    read_back = read(results)
    name = q_proj(read_back.layouts["model"])
    for run in read_back.settings.runs:
        rows = [(stage, row["block"]) for stage, row in read_back.stages_of("model", run) if row["linear"] == name]
        assert [block for stage, block in rows if stage == "capture"] == [0, 2], "its inputs in both blocks"
        assert {block for stage, block in rows if stage != "capture"} == {0}, "it is pruned once"


@pytest.mark.slow
def test_the_reconstruction_of_a_block_leaves_what_others_share_with_it(zamba):
    chain, trained = (load(zamba.folder / "results/model" / run / "checkpoint") for run in ("chain", "trained"))
    others = trained.state_dict()
    same = {name for name, value in chain.state_dict().items() if torch.equal(value, others[name])}
    first, _, again = ({name for name, _ in block.named_parameters()} for block in block_list(chain))
    shared = {name for name in first & again if chain.all_tied_weights_keys.get(f"model.layers.2.{name}")}
    moved = {name.removeprefix("model.layers.0.") for name in set(others) - same}
    assert shared and "linear.weight" in moved
    assert not {name for name in moved if name in shared and "adapter" not in name}
    made = artifacts.read(zamba.folder / "results/model/trained/block_000/reconstructed.safetensors")
    assert "mamba_decoder.input_layernorm.weight" in made.provenance["parameters"]
    assert not [name for name in made.provenance["parameters"] if name.startswith("shared_transformer")]
    kept = trained.get_submodule("model.layers.0.shared_transformer.feed_forward.down_proj").weight
    assert 2 * int((kept == 0).sum()) == kept.numel()


@pytest.mark.slow
@pytest.mark.parametrize("only", [None, "chain", "trained"])
def test_the_plan_has_the_jobs_of_the_workflow_and_they_come_after_those_they_wait_for(zamba, only, monkeypatch):
    config = yaml.safe_load((zamba.folder / "config.yaml").read_text()) | {"results": "elsewhere"}
    config["runs"] = [run for run in config["runs"] if only in (None, run["name"])]
    monkeypatch.chdir(zamba.folder)
    work, planned, done = pipeline.jobs(*checks.check(config)), Counter(), set()
    for (rule, _), count in zamba.planned(config).items():
        planned[rule] += count
    assert Counter(key[0] for key in work) == planned
    for key, job in work.items():
        assert set(job.after) <= done, key
        done.add(key)
    block = [("capture", "model", "dense", each) for each in (0, 2)]
    assert set(block) <= set(work[next(key for key in work if key[0] in ("mask", "update") and key[3] == 0)].after)
