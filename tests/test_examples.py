"""Every configuration in examples/ plans: a dry run from config.json alone, without network, weights or texts. The
program in it runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Clone

from gramprune.evaluation import zeroshot
from gramprune.storage import files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {"model_type": "llama", "num_attention_heads": 32, "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
WIDE = {**LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "tie_word_embeddings": False}
MODELS = {  # by their published sizes
    "meta-llama/Llama-2-7b-hf": dict(
        WIDE, vocab_size=32000, intermediate_size=11008, num_key_value_heads=32, max_position_embeddings=4096
    ),
    "meta-llama/Llama-3.1-8B": dict(
        WIDE, vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072
    ),
    "meta-llama/Llama-3.2-1B": dict(
        LLAMA, hidden_size=2048, num_hidden_layers=16, tie_word_embeddings=True,
        vocab_size=128256, intermediate_size=8192, num_key_value_heads=8, max_position_embeddings=131072,
    ),
    "./opt-125m": dict(
        model_type="opt", hidden_size=768, ffn_dim=3072, num_hidden_layers=12, num_attention_heads=12,
        vocab_size=50272, max_position_embeddings=2048, dtype="float16",
    ),
    "state-spaces/mamba-130m-hf": dict(
        model_type="mamba", hidden_size=768, num_hidden_layers=24, state_size=16, time_step_rank=48, vocab_size=50280,
    ),
}  # fmt: skip
PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "./opt-125m": 125_239_296,
    "state-spaces/mamba-130m-hf": 129_135_360,
}
PRUNED = {  # linears per block, weights in all of them
    "meta-llama/Llama-2-7b-hf": (7, 32 * (4 * 4096**2 + 3 * 4096 * 11008)),
    "meta-llama/Llama-3.1-8B": (7, 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)),
    "meta-llama/Llama-3.2-1B": (7, 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)),
    "./opt-125m": (6, 12 * (4 * 768**2 + 2 * 768 * 3072)),
    "state-spaces/mamba-130m-hf": (4, 24 * (768 * 3072 + 1536 * (48 + 2 * 16) + 48 * 1536 + 1536 * 768)),
}
# What is shared is there once: block 0's Gram matrices by all runs, its masks by runs with the same mask settings.
JOBS = {
    "llama-2-7b": {  # eight chains; four runs have a mask that is not joint
        "capture": 1 + 8 * 31, "mask": 4 * 32, "update": (3 + 3) * 32, "perplexity": 9 * 2, "tasks": 9,
        "assemble": 8, "fetch_data": 3, "fetch_tasks": 1,
    },
    "llama-3.1-8b": {  # ten chains; each refined mask is another run's too in block 0
        "capture": 1 + 10 * 31, "mask": 4 * (32 + 31), "refine": 4 * 32, "update": 2 * 32, "perplexity": 11,
        "tasks": 11, "assemble": 10, "fetch_data": 2, "fetch_tasks": 1,
    },
    "llama-3.2-1b": {
        "capture": 1 + 4 * 15, "mask": 16 + 15, "update": 3 * 16, "perplexity": 5, "assemble": 4, "fetch_data": 2,
    },
    "opt-125m": {  # two chains beside two runs on the dense trail
        "capture": 12 + 2 * 11, "mask": 3 * 12, "update": 2 * 12, "perplexity": 5, "tasks": 5,
        "assemble": 4, "fetch_data": 2, "fetch_tasks": 1,
    },
    "mamba-130m": {
        "capture": 1 + 4 * 23, "mask": 3 * 24, "update": 3 * 24, "perplexity": 5, "tasks": 5,
        "assemble": 4, "fetch_data": 2, "fetch_tasks": 1,
    },
}  # fmt: skip
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
TABLES = {"all", "summary", "layers", "report", "total"}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory):
    """Where lm-eval's tasks are that the examples name: looked for once, as that takes long, not once per example."""
    entries = [e for path in EXAMPLES for e in yaml.safe_load(path.read_text())["evaluation"].get("tasks", [])]
    names = {name for entry in entries for name in (entry["tasks"] if isinstance(entry, dict) else [entry])}
    path = zeroshot.place(tmp_path_factory.mktemp("definitions"))
    zeroshot.folders(sorted(names), None, path, "examples")
    return path


def of_holes(path: Path, config: dict) -> None:
    """A file with all of a model's tensors, of float16 zeros that take no disk."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            header[name] = {"dtype": "F16", "shape": [*tensor.shape], "data_offsets": [end, end + 2 * tensor.numel()]}
            end += 2 * tensor.numel()
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


@pytest.fixture(scope="module")
def clone(definitions, tokenizer, tmp_path_factory) -> Clone:
    """A clone, and a hub's cache with each model's config.json and nothing else; a folder that is whole, of holes."""
    folder = tmp_path_factory.mktemp("clone")
    for source, config in MODELS.items():
        if source.startswith("./"):
            place = folder / source
            tokenizer.save_pretrained(place)
            of_holes(place / "model.safetensors", config)
        else:
            repository = folder / "hub" / f"models--{source.replace('/', '--')}"
            place = repository / "snapshots" / COMMIT
            place.mkdir(parents=True)
            (repository / "refs").mkdir()
            (repository / "refs/main").write_text(COMMIT)
        (place / "config.json").write_text(json.dumps(config))
    shutil.copytree(ROOT / "examples", folder / "examples")
    environment = {**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    return Clone(folder, environment)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_plans_the_jobs_that_it_says(clone, definitions, path):
    config = yaml.safe_load(path.read_text())
    assert f"--configfile examples/{path.name}\n" in path.read_text()  # the exact command stands in it
    results = clone.folder / config["results"]
    files.claim(results)
    shutil.copy(definitions, zeroshot.place(results))
    done = clone.snakemake("--dry-run", "--quiet", "rules", "--configfile", f"examples/{path.name}")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    found = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
    assert {"fetch_model": 1, "calibrate": 1, **JOBS[path.stem]} == {r: n for r, n in found.items() if r not in TABLES}

    source = config["model"]["source"] if isinstance(config["model"], dict) else config["model"]
    layout = json.loads((results / source.rpartition("/")[2] / "layout.json").read_text())
    blocks = layout["blocks"]
    head = 0 if MODELS[source].get("tie_word_embeddings", True) else layout["head"]
    assert layout["outside"] + head + sum(block["parameters"] for block in blocks) == PARAMETERS[source]
    linears, weights = PRUNED[source]
    assert all(len(block["linears"]) == linears for block in blocks)
    assert sum(linear["rows"] * linear["columns"] for b in blocks for linear in b["linears"].values()) == weights


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_the_library_is_shown_on_a_linear_a_block_and_a_model(own, tiny_model):
    command = [sys.executable, str(ROOT / "examples/library.py"), *([str(tiny_model)] if own else [])]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    lost = [float(share) for share in re.findall(r"([\d.]+)% of the outputs", said)]
    assert len(lost) == 5
    assert lost[0] > lost[1] > lost[2] and lost[1] > lost[3] > lost[4]
    dense, one, *both = map(float, re.findall(r"perplexity ([\d.]+)", said))
    assert said.count("with 75.00% zeros") == len(both) == 2
    assert own or (dense < one and both[1] < both[0])  # a model without training is as bad as it can be
