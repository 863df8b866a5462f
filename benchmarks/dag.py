"""How long `snakemake --dry-run` takes before it says what it would do: a 32-block model, eight runs.

    python benchmarks/dag.py                            a minute or two
    python benchmarks/dag.py --blocks 80 --runs 44      8,000 jobs

Why: every command begins with it, so it is what a user waits for after each change of the configuration. Figures to
reach: 15 s; 60 s and 2 GiB for 8,000 jobs. Depth and runs are those of a large experiment; the widths are tiny, since
no job runs.

The alternative, in the same run: `snakemake --version`, Snakemake's plain start. The first dry run of a model also
makes its layout.json, which imports torch and transformers; the later ones, of which the median counts, read it. What
our own code takes of a dry run is measured by itself: import and checks in a fresh interpreter, then the digests.
"""

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml  # comes with Snakemake

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
RECIPES = [
    {"mask": "wanda"},
    {"mask": "wanda", "update": "admm"},
    {"mask": "admm", "update": "joint"},
    {"mask": "wanda", "refine": "sparseswaps", "update": "exact"},
]
# What workflow/rules/common.smk does when it is read, without Snakemake.
OURS = """
import sys, time
started = time.perf_counter()
sys.path.insert(0, "src")
import yaml
from gramprune.experiment import checks
from gramprune.storage import fingerprint
imported = time.perf_counter()
checks.check(yaml.safe_load(open("config.yaml")))
checked = time.perf_counter()
stages = ["calibrate", "capture", "mask", "update", "assemble", "evaluate", "fetch", "summarise"]
for stage in stages:
    fingerprint.code(f"gramprune.stages.{stage}")
print(imported - started, checked - imported, time.perf_counter() - checked)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--runs", type=int, default=8)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clone(folder)
        save_model(folder / "model", chosen.blocks)
        (folder / "config.yaml").write_text(yaml.safe_dump(experiment(chosen.runs), sort_keys=False))
        first, listing = timed(folder, "-m", "snakemake", "--dry-run")
        dry, plain, parts = [], [], []
        for _ in range(REPEATS):  # in turn, so that a disturbance of the machine meets all of them
            dry.append(timed(folder, "-m", "snakemake", "--dry-run")[0])
            plain.append(timed(folder, "-m", "snakemake", "--version")[0])
            parts.append([float(value) for value in timed(folder, "-c", OURS)[1].split()])
    found = re.search(r"^total\s+(\d+)", listing, re.MULTILINE)
    jobs = int(found[1]) if found else 0
    print(f"{chosen.blocks} blocks, {chosen.runs} runs, {jobs} jobs; median of {REPEATS}\n")
    reference = statistics.median(plain)
    show("snakemake --version", plain, reference)
    show("snakemake --dry-run", dry, reference)
    print(f"{'  the first, makes layout.json':32}{first:8.2f} s{first / reference:8.2f} ×")
    ours = 0.0
    for index, name in enumerate(["our imports", "our checks", "our digests"]):
        ours += show(f"  of which {name}", [part[index] for part in parts], reference)
    middle = statistics.median(dry)
    print(f"\nours: {ours:.2f} s, {100 * ours / middle:.0f} % of a dry run (with imports that Snakemake needs too)")
    print(f"beyond Snakemake's start: {1000 * (middle - reference) / max(jobs, 1):.1f} ms per job")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    print(f"peak memory: {peak:.2f} GiB")


def clone(folder: Path) -> None:
    """What a user's clone of the project runs with: Snakefile, workflow and library."""
    for name in ("Snakefile", "workflow", "src"):
        source, target = ROOT / name, folder / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copy2(source, target)


def experiment(count: int) -> dict:
    """Half of the runs as chains of pruned blocks, half on the dense model's activations."""
    runs = [
        {
            "name": f"run-{place}",
            "sparsity": round(0.5 + place / 1000, 3),
            **RECIPES[place // 2 % len(RECIPES)],
            "propagation": ("pruned", "dense")[place % 2],
        }
        for place in range(count)
    ]
    return {
        "model": "./model",
        "calibration": {"dataset": "demo", "length": 64},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 64}},
        "runs": runs,
    }


def save_model(folder: Path, blocks: int) -> None:
    """A random Llama with tiny widths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    ).save_pretrained(folder)


def timed(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds of wall time that Python with these arguments takes, and what it says."""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(arguments)[:60]} failed:\n{done.stderr[-4000:]}")
    return seconds, done.stdout


def show(name: str, seconds: list[float], reference: float) -> float:
    """Print one row; the median."""
    middle = statistics.median(seconds)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"{name:32}{middle:8.2f} s{middle / reference:8.2f} ×   {spread}")
    return middle


if __name__ == "__main__":
    main()
