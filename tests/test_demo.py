"""The embedded model, and the experiment that runs when nothing was edited."""

import pyarrow.parquet as parquet
import pytest
from conftest import ROOT, Clone

from gramprune.model import layout
from gramprune.text import demo


def test_held_out_documents_are_not_trained_on():
    train, heldout = demo.documents(heldout=False), demo.documents(heldout=True)
    assert not set(train) & set(heldout)
    assert 0.05 < sum(map(len, heldout)) / sum(map(len, train)) < 0.15


def test_the_layout_of_the_demo_is_known_before_it_is_trained():
    found = layout.describe(demo.config())
    assert len(found["blocks"]) >= 4
    first = found["blocks"][0]["linears"]
    assert first["self_attn.k_proj"]["rows"] < first["self_attn.q_proj"]["rows"], "grouped-query attention"
    assert first["mlp.gate_proj"]["input"] == first["mlp.up_proj"]["input"]


def test_the_demo_model_is_an_ordinary_folder_and_the_same_for_the_same_seed(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("first", "second"):
        told = []
        result = demo.train(tmp_path / name, steps=2, report=told.append)
    assert result["steps"] == 2 and told
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("first", "second")]
    assert files[0] == files[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert len(tokenizer) == model.config.vocab_size
    text = "def é(): return '€'"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


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
