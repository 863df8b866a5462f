"""Accuracy on tasks of lm-eval: the released package, on items that are files, through the workflow."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, Clone, changed
from problems import assert_sentence

from gramprune.errors import GrampruneError
from gramprune.evaluation import zeroshot
from gramprune.model.loading import open_model
from gramprune.model.logits import whole_logits
from gramprune.text import demo

ZERO_SHOT = ROOT.parent / "shared" / "data" / "zeroshot"
TASK = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 3},
}


@pytest.fixture(scope="module")
def definitions(documents, tmp_path_factory):
    """Two tasks over JSONL, and a group of both."""
    folder = tmp_path_factory.mktemp("definitions")
    words = [words for words in (text.split() for text in documents) if len(words) > 12][:40]
    for shift, name in enumerate(("first", "second")):
        items = [
            {
                "query": " ".join(text[:8]),
                "choices": [" ".join(words[(place + k * (shift + 3)) % 40][8 : 10 + k]) for k in range(3)],
                "gold": 0,
            }
            for place, text in enumerate(words)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        kwargs = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **TASK, "dataset_kwargs": kwargs}))
    means = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    both = {"group": "both", "task": ["first", "second"], "aggregate_metric_list": means}
    (folder / "both.yaml").write_text(yaml.safe_dump(both))
    return folder


@pytest.fixture(scope="module")
def small(config, definitions):
    """The dense model and one run, evaluated on a task and on a group."""

    def reduce(c):
        c["runs"] = [run for run in c["runs"] if run["name"] == "plain"]
        first = {"tasks": ["first"], "dtype": "float32"}
        entries = [first, {"name": "pair", "tasks": ["both"], "limit": 10, "shots": 2}]
        c["evaluation"]["tasks"] = [{**entry, "include_path": str(definitions)} for entry in entries]

    return changed(config, reduce)


@pytest.fixture(scope="module")
def evaluated(small, tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("evaluated"))
    clone.write(small)
    clone.run()
    return clone


def result(clone, run, name):
    return json.loads((clone.folder / f"results/tiny/{run}/evaluation/tasks_{name}.json").read_text())


@pytest.mark.slow
def test_accuracy_is_that_of_the_likeliest_continuation(evaluated, definitions):
    found = result(evaluated, "plain", "first")["tasks"]["first"]
    model, tokenizer, _ = open_model(evaluated.folder / "results/tiny/plain/checkpoint", "float32")
    right = {"acc": [], "acc_norm": []}
    for line in (definitions / "first.jsonl").read_text().splitlines():
        item = json.loads(line)
        scores = []
        for choice in item["choices"]:
            start, whole = (tokenizer(text)["input_ids"] for text in (item["query"], f"{item['query']} {choice}"))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
            scores.append(sum(float(logits[i - 1, whole[i]]) for i in range(len(start), len(whole))))
        best = {"acc": scores, "acc_norm": [s / len(c) for s, c in zip(scores, item["choices"], strict=True)]}
        for name, values in best.items():
            right[name].append(float(values.index(max(values)) == item["gold"]))
    for name, values in right.items():
        mean = sum(values) / len(values)
        assert found["metrics"][name] == pytest.approx(mean) and found["per_item"][name] == values
        error = math.sqrt(mean * (1 - mean) / (len(values) - 1))
        assert found["metrics"][f"{name}_stderr"] == pytest.approx(error)
    assert (found["version"], found["samples"], found["shots"], found["items"]) == (3, 40, 0, 40)


@pytest.mark.slow
def test_what_a_figure_depends_on_is_stored_with_it(evaluated):
    made = result(evaluated, "dense", "pair")
    assert made["tasks"].keys() == {"first", "second"} and made["groups"].keys() == {"both"}
    mean = sum(task["metrics"]["acc"] for task in made["tasks"].values()) / 2
    assert made["groups"]["both"]["metrics"]["acc"] == pytest.approx(mean)
    for task in made["tasks"].values():
        assert (task["samples"], task["shots"], task["items"]) == (10, 2, 40) and len(task["sha256"]) == 64
    assert made["lm_eval"] and made["versions"]["transformers"] and made["model"]["fingerprint"]
    assert made["settings"]["limit"] == 10 and made["hardware"]["cores"]


@pytest.mark.slow
def test_a_changed_task_is_evaluated_again_and_nothing_else(evaluated, small):
    tables = Counter({("summary", None): 1, ("report", None): 1})
    both = Counter({("tasks", "dense"): 1, ("tasks", "plain"): 1})
    assert evaluated.planned() == Counter()
    assert evaluated.planned(changed(small, lambda c: c["evaluation"]["tasks"][0].update(limit=5))) == tables + both
    assert evaluated.planned(changed(small, lambda c: c["evaluation"]["tasks"].pop())) == tables
    more = changed(small, lambda c: c["evaluation"]["tasks"].append({**c["evaluation"]["tasks"][0], "name": "more"}))
    assert evaluated.planned(more) == tables + both + Counter({("fetch_tasks", None): 1})


@pytest.mark.slow
def test_items_that_have_changed_since_they_were_fetched_are_refused(evaluated, definitions, tmp_path):
    """The definition's folder is an input of the fetching, so this needs data that lie elsewhere."""
    from gramprune.stages.tasks import evaluate_tasks

    fetched = json.loads((evaluated.folder / "results/data/tasks/first.json").read_text())
    fetched["tasks"]["first"]["sha256"] = "0" * 64
    (tmp_path / "first.json").write_text(json.dumps(fetched))
    settings = result(evaluated, "dense", "first")["settings"]
    model = evaluated.folder / "results/tiny/model.json"
    with pytest.raises(GrampruneError) as error:
        evaluate_tasks(model, None, tmp_path / "first.json", tmp_path / "out.json", settings, "", "cpu", 4, "whole")
    assert_sentence(error, "task first", "0000000000000000", "first.json", "delete")


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry, words",
    [
        ({"tasks": ["fisrt"]}, ["evaluation.tasks[0]", "'fisrt'", "did you mean 'first'", "lm-eval ls tasks"]),
        ({"tasks": ["first"], "include_path": "nowhere"}, ["evaluation.tasks[0].include_path", "nowhere", ".yaml"]),
        ({"tasks": []}, ["evaluation.tasks[0].tasks"]),
        ({"tasks": ["first"], "shot": 1}, ["'shot'", "did you mean 'shots'"]),
    ],
)
def test_a_wrong_entry_is_refused_before_any_job_starts(evaluated, small, definitions, entry, words):
    wrong = changed(small, lambda c: c["evaluation"].update(tasks=[{"include_path": str(definitions), **entry}]))
    done = evaluated.snakemake("--dry-run", config=wrong)
    assert done.returncode and "Traceback" not in done.stderr
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("gramprune: "))
    assert all(word in sentence for word in words), sentence


def test_a_task_of_ones_own_is_found_without_lm_eval_as_lm_eval_finds_it(definitions, tmp_path):
    code = (
        "import sys; from gramprune.evaluation import zeroshot as z; from pathlib import Path; folder = sys.argv[1]; "
    )
    code += "print(z.folders(['both'], folder, Path(sys.argv[2]), ''), 'lm_eval' in sys.modules)"
    command = [sys.executable, "-c", code, str(definitions), str(tmp_path / "kept.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{[str(definitions)]} False\n" and not done.stderr
    odd = tmp_path / "odd"
    shutil.copytree(definitions, odd / "deep")
    (odd / "_base").write_text("tag: [one, other]\ndoc_to_text: !function nowhere.text\n")
    (odd / "tagged.yaml").write_text("include: _base\ntask: tagged\n")
    (odd / "made.yaml").write_text("task: made\nclass: !function nowhere.Made\n")
    (odd / "inner.yaml").write_text("group: inner\ntask: [tagged, {task: made}]\n")
    (odd / "broken.yaml").write_text("task: [\n")
    found = zeroshot.own(str(odd))
    assert found == zeroshot.all_of_them(str(odd), defaults=False)
    assert {"first", "both", "tagged", "one", "other", "made", "inner"} == found.keys() - {"second"}


def test_examples_in_the_prompt_where_the_task_fixes_none_are_refused(definitions, tmp_path):
    fixed = {**yaml.safe_load((definitions / "first.yaml").read_text()), "task": "fixed", "num_fewshot": 0}
    (tmp_path / "fixed.yaml").write_text(yaml.safe_dump(fixed))
    tasks = zeroshot.load(["fixed"], [str(tmp_path)])
    with pytest.raises(GrampruneError) as error:
        zeroshot.accuracy(None, None, None, tasks, shots=3, limit=None, batch_size=1)
    assert_sentence(error, "shots is 3", "fixed", "leave")


def test_a_rolling_likelihood_is_lm_evals_own(tokenizer, documents, tmp_path):
    """A Mamba says no context: lm-eval then takes the tokenizer's `model_max_length` for its windows."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, MambaConfig

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=1, initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 50}))
    (tmp_path / "rolling.jsonl").write_text(json.dumps({"text": documents[0][:800]}) + "\n")
    content = {
        "task": "rolling",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rolling.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    (tmp_path / "rolling.yaml").write_text(yaml.safe_dump(content))
    model, opened, _ = open_model(tmp_path, "float32")
    tasks = zeroshot.load(["rolling"], [str(tmp_path)])
    found, _ = zeroshot.accuracy(model, whole_logits(model), opened, tasks, shots=None, limit=None, batch_size=4)
    alone = HFLM(pretrained=str(tmp_path), dtype="float32", device="cpu", batch_size=4)
    assert alone.max_length == 50
    request = SimpleNamespace(args=(documents[0][:800],))
    likelihood = alone.loglikelihood_rolling([request], disable_tqdm=True)[0]
    expected = math.exp(-likelihood / len(documents[0][:800].split()))
    assert found["rolling"]["metrics"]["word_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_the_cloze_items_are_from_text_that_the_demo_model_has_not_seen():
    lines = (ROOT / "workflow/tasks/demo_cloze.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert len(items) == 400 and len(demo.cloze(8)) == 8
    counts = Counter(item["gold"] for item in items)
    assert all(70 < counts[place] < 130 for place in range(4))
    seen = "\n".join(demo.documents(heldout=False))
    passages = [item["context"] + item["choices"][item["gold"]] for item in items]
    assert sum(passage in seen for passage in passages) == 0


@pytest.mark.slow
@pytest.mark.skipif(not ZERO_SHOT.exists(), reason="no zero-shot items here")
def test_real_items_give_the_accuracy_of_a_model_that_has_learnt_a_little(tmp_path):
    """ARC-Easy and PIQA as their authors' items: a little model is a little better than guessing."""
    for name in ("arc_easy", "piqa"):
        kwargs = {"data_files": {"test": str(ZERO_SHOT / f"{name}.jsonl")}}
        content = {"task": f"local_{name}", **TASK, "dataset_kwargs": kwargs, "doc_to_text": "{{query}}\nAnswer:"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    tasks = zeroshot.load(["local_arc_easy", "local_piqa"], [str(tmp_path)])
    model, tokenizer, _ = open_model(ROOT.parent / "shared/models/llama-11m", "float32")
    found, _ = zeroshot.accuracy(model, whole_logits(model), tokenizer, tasks, shots=None, limit=300, batch_size=16)
    assert 0.25 < found["local_arc_easy"]["metrics"]["acc"] < 0.5
    assert 0.5 < found["local_piqa"]["metrics"]["acc"] < 0.7
