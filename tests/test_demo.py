"""The embedded model, and the experiment that runs when nothing was edited."""

import pyarrow.parquet as parquet
import pytest
from conftest import ROOT, Clone, changed

from gramprune.errors import GrampruneError
from gramprune.experiment import checks
from gramprune.model import inspect, layout
from gramprune.model.demo import DEMOS, train
from gramprune.model.folder import read_config
from gramprune.text.demo import documents


def test_held_out_documents_are_not_trained_on():
    train, heldout = documents(heldout=False), documents(heldout=True)
    assert not set(train) & set(heldout)
    assert 0.05 < sum(map(len, heldout)) / sum(map(len, train)) < 0.15


def test_what_is_embedded_has_what_it_is_there_to_show():
    llama, experts, mamba = (layout.describe(demo.config)["blocks"][0]["linears"] for demo in DEMOS.values())
    assert llama["self_attn.k_proj"]["rows"] < llama["self_attn.q_proj"]["rows"], "grouped-query attention"
    assert llama["mlp.gate_proj"]["input"] == llama["mlp.up_proj"]["input"]
    down = experts["mlp.experts.down_proj"]
    assert down["experts"] == 16 and down["active"] * down["columns"] == llama["mlp.down_proj"]["columns"]
    assert [*mamba] == [f"mixer.{name}_proj" for name in ("in", "x", "dt", "out")]


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_model_is_an_ordinary_folder_as_planned_and_the_same_for_the_same_seed(tmp_path, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts, heldout = documents(heldout=False)[:20], documents(heldout=True)[:2]
    for seed, folder in ((0, "first"), (0, "second"), (1, "other")):
        told = []
        result = train(tmp_path / folder, name, texts, heldout, seed, steps=2, report=told.append)
    assert result["steps"] == 2 and told
    first, second, other = (
        {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("first", "second", "other")
    )
    assert first == second
    assert {file for file in first if first[file] != other[file]} == {"model.safetensors"}
    planned = layout.describe(DEMOS[name].config)
    assert layout.describe(read_config(tmp_path / "first")) == planned
    inspect.check(tmp_path / "first", planned)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert len(tokenizer) == model.config.vocab_size
    text = "def é(): return '€'"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_each_demo_is_trained_where_it_is_the_model_and_a_name_that_is_none_is_told_which_there_are(tmp_path, config):
    planned = Clone(tmp_path).planned(changed(config, lambda c: c.update(model=[*DEMOS])))
    assert planned["demo_model", None] == len(DEMOS) and not planned["fetch_model", None]
    with pytest.raises(GrampruneError, match="no model 'demo-expert' is trained here; did you mean 'demo-experts'"):
        checks.check(changed(config, lambda c: c.update(model="demo-expert")))


@pytest.mark.slow
def test_recipes_rank_on_experts_as_on_other_models(tmp_path):
    train(tmp_path / "model", "demo-experts", documents(heldout=False)[:100], documents(heldout=True)[:1], steps=200)
    clone = Clone(tmp_path)
    clone.write(
        {
            "model": "./model",
            "calibration": {"dataset": "demo", "samples": 32, "length": 256},
            "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 256, "windows": 64}},
            "runs": [{"recipe": ["magnitude", "wanda", "fast"], "sparsity": "2:4", "propagation": "dense"}],
        }
    )
    clone.run()
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    dense, magnitude, wanda, fast = (row["perplexity_demo_heldout"] for row in rows)
    assert magnitude > wanda > fast > dense


@pytest.mark.slow
def test_the_shipped_experiment_ranks_the_recipes_at_half_and_at_two_of_four(tmp_path):
    """Wanda beats magnitude (arXiv 2306.11695); gradual ADMM beats a mask alone by far (arXiv 2401.02938)."""
    clone = Clone(tmp_path)
    (clone.folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    clone.run()
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    value = {row["run"]: row["perplexity_demo_heldout"] for row in rows}
    for pattern in ("0.5", "2of4"):
        magnitude, wanda, fast, admm, best = (
            value[f"{recipe}-{pattern}"] for recipe in ("magnitude", "wanda", "fast", "admm", "best")
        )
        assert magnitude > wanda > max(fast, admm) > best > value["dense"]
    assert not clone.planned()
