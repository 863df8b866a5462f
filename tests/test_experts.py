"""Experts: a Gram matrix for each from the tokens routed to it, a named fallback for those with too few."""

import json
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import Clone
from families import CONFIGS, config
from monolithic import block_list, load, observe
from safetensors.torch import load_file

from gramprune.experiment import resources, settings
from gramprune.model import layout
from gramprune.report.results import read_layers
from gramprune.stages.capture import capture
from gramprune.stages.fetch import fetch_model
from gramprune.stages.mask import mask_block
from gramprune.stages.update import update_block
from gramprune.storage import artifacts
from gramprune.storage.files import read_json

EXPERTS = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
MASK = {"options": {}, "pattern": 0.5, "granularity": "row", "precision": "float32", "target": {"method": "own"}}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory, tokenizer):
    """A random Mixtral of four experts, of which a token goes to two."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixtral")
    made = AutoModelForCausalLM.from_config(config("mixtral", initializer_range=0.1, vocab_size=300))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def captured(mixtral, tmp_path):
    """What gives the Gram matrices of the first block for a number of tokens."""
    manifest = tmp_path / "model.json"
    fetch_model(manifest, "", {"kind": "folder", "source": str(mixtral), "revision": None}, "code")
    described = layout.describe(json.loads((mixtral / "config.json").read_text()))["blocks"][0]

    def gram(tokens, min_tokens=1, experts="routed", room=2**30, dense=None):
        about = {"model": read_json(manifest)["fingerprint"]}
        artifacts.write(
            tmp_path / "tokens", {"tokens": tokens}, artifacts.provenance("calibrate", {}, "code", {}, **about)
        )
        chosen = {"dtype": "auto", "accumulate": "float32", "experts": experts, "min_tokens": min_tokens}
        capture(
            **gram.stage(inputs=tmp_path / "inputs"), before=None, weights=None, dense=dense, batch_size=2, room=room,
            settings={**chosen, "linears": [*described["linears"]]},
        )  # fmt: skip
        return artifacts.read(tmp_path / "gram"), read_json(tmp_path / "metrics.json")["linears"]

    gram.stage = partial(
        dict, model=manifest, tokens=tmp_path / "tokens", grams=tmp_path / "gram", trail="dense", block=0, labels={},
        metrics=tmp_path / "metrics.json", code="code", device="cpu",
    )  # fmt: skip
    return gram


def routed(mixtral, tokens):
    """Every expert's weight and inputs, by a loop over experts in the whole model."""
    whole = load(mixtral)
    with torch.no_grad():
        return {n: x for n, x in observe(whole, block_list(whole)[0], tokens).items() if "experts" in n}


def test_every_expert_has_the_gram_matrix_of_the_tokens_that_go_to_it(captured, mixtral):
    tokens = torch.randint(0, 300, (6, 24), generator=torch.Generator().manual_seed(0))
    grams, rows = captured(tokens, min_tokens=1)
    expected = routed(mixtral, tokens)
    assert len(expected) == 8
    for name, (_, inputs) in expected.items():
        linear = grams.provenance["linears"][name]
        assert linear["gram"] == name and linear["tokens"] == len(inputs) and "fallback" not in linear
        torch.testing.assert_close(grams.read(name), inputs.T @ inputs)
        torch.testing.assert_close(grams.read(f"{name}.sum"), inputs.sum(dim=0).float(), rtol=1e-4, atol=1e-4)
    assert sum(row["tokens"] for row in rows if EXPERTS[1] in row["linear"]) == 2 * tokens.numel()


def test_an_expert_with_too_few_tokens_or_none_has_a_named_fallback_and_nothing_fails(
    captured, mixtral, tmp_path, caplog
):
    tokens = torch.randint(0, 300, (1, 1), generator=torch.Generator().manual_seed(0))
    grams, rows = captured(tokens, min_tokens=2)  # two of four experts have one token, the others none
    linears, seen = grams.provenance["linears"], routed(mixtral, tokens)
    for kind, name, at in zip(("layer", "magnitude"), EXPERTS, ("all experts' inputs", "magnitude"), strict=True):
        assert {linears[f"{name}.{expert}"]["fallback"] for expert in range(4)} == {kind}
        assert f"4 of 4 experts of {name}" in caplog.text and at in caplog.text
        assert [row["fallback"] for row in rows if row["linear"].startswith(name)] == [kind] * 4
    together = torch.cat([x for name, (_, x) in seen.items() if EXPERTS[0] in name])
    torch.testing.assert_close(grams.read(EXPERTS[0]), together.T @ together)
    assert torch.equal(grams.read(EXPERTS[1]), torch.eye(48))
    mask_block(mask=None, output=tmp_path / "mask", settings={**MASK, "method": "wanda"}, **captured.stage())
    change = {"method": "exact", "options": {}, "precision": "float32", "target": {"method": "own"}}
    update_block(mask=tmp_path / "mask", output=tmp_path / "weights", settings=change, **captured.stage())
    weights = artifacts.read(tmp_path / "weights")
    down = load(mixtral).model.layers[0].mlp.experts.down_proj[3]
    largest = down.abs() >= down.abs().sort(dim=1).values[:, 24:25]  # by magnitude, the others as they were
    torch.testing.assert_close(weights.read(f"{EXPERTS[1]}.3.weight"), down.where(largest, 0).detach())


@pytest.mark.parametrize("min_tokens", [1, 70])
def test_gram_matrices_that_do_not_fit_at_once_are_made_in_groups_and_are_the_same(captured, tmp_path, min_tokens):
    tokens = torch.randint(0, 300, (6, 24), generator=torch.Generator().manual_seed(0))
    captured(tokens)
    dense = (tmp_path / "inputs").rename(tmp_path / "dense")
    grams, rows = captured(tokens, min_tokens, dense=dense)
    content = (tmp_path / "gram").read_bytes()
    (tmp_path / "gram").unlink()
    again, others = captured(tokens, min_tokens, dense=dense, room=4 * 48**2)  # of the experts' second matrix one
    assert (tmp_path / "gram").read_bytes() == content and rows == others
    assert any("fallback" in row for row in rows) == (min_tokens > 1)
    assert again.read("self_attn.q_proj.cross").equal(grams.read("self_attn.q_proj"))
    assert not any(name.endswith(".cross") for name in grams.names if "experts" in name)


def test_all_tokens_go_to_every_expert_where_that_is_asked_for(captured, mixtral):
    tokens = torch.randint(0, 300, (4, 24), generator=torch.Generator().manual_seed(0))
    grams, rows = captured(tokens, experts="all")
    assert {row["tokens"] for row in rows} == {tokens.numel()}
    assert [name for name in grams.names if name.startswith(EXPERTS[0])] == [f"{EXPERTS[0]}.0", f"{EXPERTS[0]}.0.sum"]
    whole, entering = load(mixtral), []
    layer = block_list(whole)[0]
    layer.mlp.register_forward_pre_hook(lambda module, args: entering.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        whole(input_ids=tokens, use_cache=False)
        (inputs,) = entering
        for expert in range(4):
            gate, up = (inputs @ layer.mlp.experts.gate_up_proj[expert].T).chunk(2, dim=1)
            inner = torch.nn.functional.silu(gate) * up
            for name, x in zip(EXPERTS, (inputs, inner), strict=True):
                stored = grams.provenance["linears"][f"{name}.{expert}"]["gram"]
                torch.testing.assert_close(grams.read(stored), x.T @ x)


def test_the_layout_has_one_entry_for_all_experts_and_the_plan_counts_each():
    def described(experts):
        return layout.describe({**CONFIGS["mixtral"], "num_local_experts": experts})

    few, many = described(2), described(128)
    assert len(many["blocks"][0]["linears"]) == len(few["blocks"][0]["linears"])
    entry = many["blocks"][0]["linears"][EXPERTS[0]]
    assert entry == {"rows": 96, "columns": 32, "input": EXPERTS[0], "experts": 128, "active": 2}
    assert "mlp.gate" in many["blocks"][0]["dense"]
    for family in ("mixtral", "qwen2_moe", "gpt_oss", "llama4"):
        assert any(block.get("all_experts") for block in layout.describe(CONFIGS[family])["blocks"]), family
    text = {
        "model": "demo",
        "calibration": {"dataset": "demo", "length": 64},
        "runs": [{"sparsity": 0.5, "mask": "wanda"}],
    }
    chosen = settings.load({**text, "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 64}}})
    more = resources.gram_bytes(many, chosen, 0) - resources.gram_bytes(few, chosen, 0)
    assert more == 126 * 4 * (32**2 + 48**2)


@pytest.mark.slow
def test_the_layout_of_a_block_with_30_gb_of_experts_takes_little_memory(tmp_path):
    """As DeepSeek-V3 has them: no tensor of all is made."""
    config = {**CONFIGS["mixtral"], "hidden_size": 7168, "intermediate_size": 512, "num_local_experts": 1024}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    program = (
        "import json, resource, sys; from gramprune.model import layout\n"
        "layout.describe(json.load(open(sys.argv[1]))); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, tmp_path / "config.json"]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024
    assert taken < 2 * 2**30


@pytest.mark.slow
def test_a_model_with_experts_is_pruned_by_snakemake_and_transformers_loads_it(tmp_path, config, mixtral):
    from transformers import AutoModelForCausalLM

    clone = Clone(tmp_path)
    runs = [
        {"name": "chain", "sparsity": "2:4", "recipe": "fast"},
        {"name": "some", "sparsity": {"default": 0.5, "*.experts.down_proj": 0.25}, "mask": "wanda"},
    ]
    calibration = {**config["calibration"], "min_tokens": 380}  # of 12 × 64 tokens half go to an expert, more or less
    clone.write({**config, "calibration": calibration, "model": {"source": str(mixtral), "name": "tiny"}, "runs": runs})
    clone.run()
    folder = clone.folder / "results/tiny"
    assert read_json(folder / "chain/checkpoint/gramprune.json")["sparsity"] == 0.5
    dense, some = (load_file(path / "model.safetensors") for path in (mixtral, folder / "some/checkpoint"))
    assert dense.keys() == some.keys()
    for key, weight in some.items():
        share = 0.25 if ".w2." in key else 0.5 if ".experts." in key or "self_attn" in key else None
        if share is None:
            assert weight.equal(dense[key]), key
        else:
            assert {*(weight == 0).sum(dim=1).tolist()} == {round(share * weight.shape[1])}, key
    loaded, told = AutoModelForCausalLM.from_pretrained(folder / "chain/checkpoint", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    page = (clone.folder / "results/report.html").read_text()
    starved = sum(1 for row in read_layers(clone.folder / "results/layers.parquet") if row.get("fallback") == "layer")
    assert starved and re.search(r"\d by layer</span>, <span class=bad>\d+ by magnitude", page)
    picture = (clone.folder / "results/pictures/layers.svg").read_text()
    assert "mlp.experts.down_proj" in picture and "down_proj.0" not in picture, "a row for all experts"
    down = loaded.model.layers[2].mlp.experts.down_proj
    assert ((down.unflatten(-1, (-1, 4)) != 0).sum(dim=-1) <= 2).all()
