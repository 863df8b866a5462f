"""Evaluation with one block in memory: the figures of the whole model, in the memory of a block."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import SHARED, changed, save_llama
from families import CONFIGS, config
from problems import assert_sentence

from gramprune import GrampruneError, machine
from gramprune.experiment import checks, evaluating, plan, resources
from gramprune.experiment.needs import GIB, MIB
from gramprune.experiment.settings import Dataset, load
from gramprune.model import layout, logits
from gramprune.model.blocks import Blocks, open_blocks
from gramprune.model.loading import open_model
from gramprune.stages.evaluate import evaluate_perplexity
from gramprune.stages.tasks import evaluate_tasks, fetch_tasks
from gramprune.stages.texts import fetch_data

REAL = [SHARED / "models" / name for name in ("llama-11m", "stories260K")]
WINDOWS = {"separator": None, "length": 40, "stride": 30, "windows": 11, "bos": "auto"}
CHANGED = {"memory", "seconds", "peak_host_mb"}
"""What may differ between a record of the whole model and one of streamed blocks."""
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{query}}",
    "metadata": {"version": 1},
}
KINDS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "letter": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["A", "B", "C"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{query}}",
        "doc_to_text": "",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "generated": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def text(documents, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "mine.txt").write_text("\n\n".join(documents[3:9]))
    fetch_data(folder / "mine.parquet", "mine", Dataset(path=str(folder / "mine.txt")).source_settings, "code")
    return folder / "mine.parquet"


@pytest.fixture(scope="module")
def definitions(documents, tmp_path_factory) -> Path:
    """A task of each kind, some of their items longer than the tiny model's context."""
    folder = tmp_path_factory.mktemp("definitions")
    words = [words for words in (text.split() for text in documents) if len(words) > 90][:12]
    with open(folder / "items.jsonl", "w") as file:
        for place, some in enumerate(words):
            choices = [" ".join(words[(place + k) % len(words)][8 : 10 + k]) for k in range(3)]
            query = " ".join(some[: 8 + 20 * (place % 3)])
            file.write(json.dumps({"query": query, "choices": choices, "gold": place % 3}) + "\n")
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}}}
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **TASK, **data, **kind}))
    group = {"group": "several", "task": ["choice", "generated"]}
    (folder / "several.yaml").write_text(yaml.safe_dump(group))
    return folder


def manifest(folder: Path, model: Path) -> Path:
    (folder / "model.json").write_text(json.dumps({"folder": str(model), "fingerprint": "0"}))
    return folder / "model.json"


def perplexity_of(model: Path, memory: str, text: Path, folder: Path, dtype: str = "auto") -> dict:
    chosen = {"dataset": "mine", **WINDOWS, "dtype": dtype}
    output = folder / f"{memory}.json"
    evaluate_perplexity(manifest(folder, model), None, text, output, chosen, "code", "cpu", 4, memory)
    return json.loads(output.read_text())


def tasks_of(model: Path, memory: str, names: list[str], definitions: Path, folder: Path) -> dict:
    fetch_tasks(folder / "tasks.json", folder, {"tasks": names, "include_path": str(definitions)}, "code")
    chosen = {"name": "mine", "tasks": names, "shots": None, "limit": None, "dtype": "float32"}
    output = folder / f"tasks-{memory}.json"
    evaluate_tasks(manifest(folder, model), None, folder / "tasks.json", output, chosen, "code", "cpu", 4, memory)
    return json.loads(output.read_text())


def without(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in CHANGED}


@pytest.mark.bits
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_streamed_perplexity_is_the_whole_models_to_the_last_bit(tiny_model, text, tmp_path, dtype):
    whole, streamed = (perplexity_of(tiny_model, memory, text, tmp_path, dtype) for memory in ("whole", "streamed"))
    assert without(whole) == without(streamed)
    assert (whole["memory"], streamed["memory"]) == ("whole", "streamed")


@pytest.mark.bits
@pytest.mark.slow
@pytest.mark.parametrize("model", REAL, ids=lambda path: path.name)
def test_streamed_figures_of_real_models_are_the_whole_models(model, text, definitions, tmp_path):
    if not model.exists():
        pytest.skip(f"{model} is not here")
    whole, streamed = (perplexity_of(model, memory, text, tmp_path) for memory in ("whole", "streamed"))
    assert without(whole) == without(streamed)
    kinds = ["choice", "letter", "rolling"]
    whole, streamed = (tasks_of(model, memory, kinds, definitions, tmp_path) for memory in ("whole", "streamed"))
    assert whole["tasks"] == streamed["tasks"]


@pytest.mark.bits
def test_streamed_tasks_are_the_whole_models_item_by_item_and_each_block_is_read_once(
    tiny_model, definitions, tmp_path, monkeypatch
):
    read, loaded = [], Blocks.loaded

    def noted(blocks, index, *change):
        read.append(index)
        return loaded(blocks, index, *change)

    monkeypatch.setattr(Blocks, "loaded", noted)
    names = ["choice", "letter"]
    whole, streamed = (tasks_of(tiny_model, memory, names, definitions, tmp_path) for memory in ("whole", "streamed"))
    assert without(whole) == without(streamed)
    assert len(streamed["tasks"]["choice"]["per_item"]["acc"]) == 12
    assert read == [0, 1, 2]
    whole, streamed = (tasks_of(tiny_model, m, ["rolling"], definitions, tmp_path) for m in ("whole", "streamed"))
    assert whole["tasks"] == streamed["tasks"] and read == [0, 1, 2] * 2


def test_likelihoods_are_lm_evals_own(tiny_model, documents):
    """Of texts that are longer than the context, of continuations of one token, with nothing in front."""
    from lm_eval.models.huggingface import HFLM

    from gramprune.evaluation.suite import Suite

    model, tokenizer, _ = open_model(tiny_model, "float32")
    contexts = [documents[3][:40], documents[4][:600], documents[3][:40], "", documents[5][:90] + " "]
    pairs = [(context, more) for context in contexts for more in (" the", "a", " is a longer continuation")]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    alone = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    ours = Suite(model, tokenizer, 4, logits.whole_logits(model))
    found, expected = (each.loglikelihood(requests, disable_tqdm=True) for each in (ours, alone))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [likeliest for _, likeliest in found] == [likeliest for _, likeliest in expected]
    texts = [SimpleNamespace(args=(text[:900],)) for text in documents[:3]]
    found, expected = (each.loglikelihood_rolling(texts, disable_tqdm=True) for each in (ours, alone))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.bits
@pytest.mark.parametrize("family", CONFIGS)
def test_streamed_logits_of_every_family_are_the_models_own(family, tmp_path, monkeypatch):
    """To the bit those of the whole model in memory, wherever hidden states are kept; its own but for rounding."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("gramprune.model.loading.open_tokenizer", lambda folder: None)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(family, initializer_range=0.1)).save_pretrained(tmp_path)
    whole, _, _ = open_model(tmp_path)
    batches = list(torch.randint(0, 160, (6, 24)).split(2))
    asked = [torch.arange(48), torch.tensor([3, 3, 47]), torch.tensor([0])]

    def all_of(made):
        return [torch.cat([piece.clone() for piece in pieces]) for pieces in made(batches, asked)]

    monkeypatch.setattr(logits, "AT_ONCE", 160 * 10)
    expected = all_of(logits.whole_logits(whole))
    with torch.no_grad():
        own = whole(input_ids=batches[0], use_cache=False).logits.flatten(0, 1)
    assert torch.allclose(expected[0], own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))
    for room in (logits.HELD, 0):
        monkeypatch.setattr(logits, "HELD", room)
        found = all_of(logits.streamed_logits(open_blocks(tmp_path)[0], tmp_path / "kept"))
        assert all(map(torch.equal, found, expected))
    assert not list(tmp_path.glob(".kept*"))


MEASURED = """
import json, sys
from pathlib import Path
from gramprune import machine
from gramprune.model import logits
import torch
opened = logits.open_logits(Path(sys.argv[1]), "auto", "cpu", True, Path(sys.argv[1], "kept"), "logits")
batches = list(torch.randint(0, 300, (8, 64)).split(2))
for pieces in opened.logits(batches, [torch.arange(128)] * 4):
    for piece in pieces:
        pass
print(machine.peak_memory()["peak_host_mb"])
"""


@pytest.mark.slow
def test_more_blocks_take_no_more_memory(tokenizer, tmp_path):
    peaks = {}
    for count in (6, 24):
        folder = tmp_path / str(count)
        wide = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": count}  # 7 MB in a block
        save_llama(folder, 0, **wide)
        tokenizer.save_pretrained(folder)
        command = [sys.executable, "-c", MEASURED, str(folder)]
        peaks[count] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peaks[24] <= 1.02 * peaks[6], peaks


def test_what_generates_text_is_not_streamed(tiny_model, config_of, definitions, tmp_path, monkeypatch):
    entry = {"name": "mine", "tasks": ["several"], "include_path": str(definitions)}
    for more in ({"memory": "streamed"}, {"tasks": [{**entry, "memory": "streamed"}]}):
        wrong = changed(config_of, lambda c, more=more: c["evaluation"].update({"tasks": [entry], **more}))
        with pytest.raises(GrampruneError) as error:
            checks.check(wrong, planning=True)
        assert_sentence(error, "evaluation.tasks[0]", "generated", "memory: whole")
    tasks = [{**entry, "memory": "whole"}]
    checks.check(changed(config_of, lambda c: c["evaluation"].update(memory="streamed", tasks=tasks)), planning=True)
    with pytest.raises(GrampruneError) as error:
        tasks_of(tiny_model, "streamed", ["generated"], definitions, tmp_path)
    assert_sentence(error, "generated", "whole")


@pytest.fixture()
def config_of(config, tmp_path, monkeypatch):
    """The tests' configuration, with results elsewhere."""
    monkeypatch.chdir(tmp_path)
    return config


def large(config, **changes):
    """Settings and layout of a model that takes 26 GiB."""
    shape = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "vocab_size": 32000}
    heads = {"num_attention_heads": 40, "model_type": "llama", "dtype": "float16"}
    return load(changed(config, lambda c: c.update(changes))), layout.describe({**shape, **heads})


@pytest.mark.parametrize("memory", [64, 8])
def test_a_model_that_does_not_fit_is_streamed_and_the_plan_says_so(config, memory, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: memory * GIB)
    settings, found = large(config, device="cpu")
    assert evaluating.is_streamed(found, settings) == (memory == 8)
    need = evaluating.perplexity(found, settings)
    assert (need.host("cpu") < 4 * GIB) if memory == 8 else (need.host("cpu") > 24 * GIB)
    said = "\n".join(plan.streamed(settings, {"tiny": found}))
    assert ("tiny is evaluated one block at a time" in said) == (memory == 8)


def test_a_gpu_that_is_too_small_streams_or_several_share_the_whole_model(config, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 256 * GIB)
    monkeypatch.setattr(machine, "gpu", lambda: "NVIDIA A10")
    monkeypatch.setattr(machine, "gpu_memory", lambda: 22 * GIB)
    settings, found = large(config, device="cuda")
    assert evaluating.is_streamed(found, settings)
    whole = changed(config["evaluation"], lambda c: c.update(memory="whole"))
    for chosen, gpus in ((settings, 1), (large(config, device="cuda", evaluation=whole)[0], 2)):
        asked = resources.requested(lambda w, chosen=chosen: evaluating.perplexity(found, chosen), chosen)
        assert asked["gpu"](None) == gpus


def test_the_plan_knows_what_is_held_in_memory():
    assert evaluating.HELD == logits.HELD
    assert 3 * 4 * logits.AT_ONCE <= evaluating.LOGITS < 3 * 4 * logits.AT_ONCE + 10 * MIB


def test_what_is_streamed_depends_on_no_setting_that_is_recorded(config):
    plain, streamed = load(config), load(changed(config, lambda c: c["evaluation"].update(memory="streamed")))
    assert plain.perplexity_settings("evaluation") == streamed.perplexity_settings("evaluation")
    assert plain.experiment == streamed.experiment
