"""Predicted against measured peak memory of every stage, in a real run of the workflow.

    python benchmarks/resources.py MODEL...        folders of models; `random:300` is a random Llama of 300M parameters

Why: the rules ask a scheduler for what `gramprune.experiment.resources` predicts from a config.json: too little and
jobs are killed, too much and they wait. To reach: predicted / measured between 0.8 and 1.5 for every stage.

How: Snakemake runs four recipes on each model with text that comes with Python, every job in a process of its own, as
on a cluster. Every stage writes its peak resident memory into its log, and the largest of every stage is compared with
the largest prediction.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import yaml  # comes with Snakemake

from gramprune.experiment import checks, pipeline

ROOT = Path(__file__).resolve().parents[1]
RUNS = [
    {"sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "dense"},
    {"sparsity": "2:4", "mask": "admm", "update": "joint", "propagation": "dense"},
    {"sparsity": "2:4", "mask": "sparsegpt", "update": "exact", "propagation": "dense"},
    {"sparsity": 0.5, "mask": "wanda", "refine": {"method": "sparseswaps", "max_swaps": 2}, "propagation": "dense"},
]
LOW, HIGH, MIB = 0.8, 1.5, 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir("."):
            compare(model, Path(folder), arguments.samples, arguments.length)


def compare(model: str, folder: Path, samples: int, length: int) -> None:
    for name in ("Snakefile", "workflow", "src"):
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy2(source, folder)
    if model.startswith("random:"):
        save_random(folder / "model", int(model.partition(":")[2]))
    config = {
        "model": {"source": "./model" if model.startswith("random:") else str(Path(model).resolve()), "name": "it"},
        "calibration": {"dataset": "demo", "samples": samples, "length": length},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": length, "windows": 16}},
        "device": "cpu",
        "runs": RUNS,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--notemp", "--no-hooks", "--quiet", "all"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    os.chdir(folder)
    predicted: dict[str, float] = defaultdict(float)
    for key, job in pipeline.jobs(*checks.check(config)).items():
        predicted[key[0]] = max(predicted[key[0]], job.need.host("cpu") / MIB)
    measured: dict[str, int] = defaultdict(int)
    for log in Path("results/logs").rglob("*.log"):
        stage = re.match(r"[a-z]+(?:_(?:model|data))?", log.stem)[0] if log.parent.name != "data" else "fetch_data"
        peak = re.search(r"peak memory (\d+) MiB", log.read_text())
        if peak:
            measured[stage] = max(measured[stage], int(peak[1]))
    print(f"\n{model}")
    for stage, found in predicted.items():
        ratio = found / measured[stage] if measured[stage] else float("nan")
        verdict = "" if LOW <= ratio <= HIGH else "  OUTSIDE"
        print(f"  {stage:12}{found:8.0f} predicted{measured[stage]:8d} measured{ratio:7.2f}{verdict}", flush=True)


def save_random(folder: Path, millions: int) -> None:
    """A random Llama in bfloat16 with a demo tokenizer, 16 blocks."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from gramprune.text import demo

    vocabulary, blocks = 32000, 16
    width = 64 * round((millions * 1e6 / blocks / 11.5) ** 0.5 / 64)  # 11.5 width² weights per block, and embeddings
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width - width % 64,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="200MB")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(demo.documents(heldout=False)[:50], vocab_size=2000, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)


if __name__ == "__main__":
    main()
