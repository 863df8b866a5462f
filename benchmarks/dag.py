"""How long `snakemake --dry-run` takes before it says what it would do: a 32-block model, eight runs.

    python benchmarks/dag.py                       a minute or two

Why: every command begins with it, so it is what a user waits for after each change of the configuration. Figure to
reach: 15 s or less. Depth and runs are those of a large experiment; the widths are tiny, since no job runs.

The alternative, in the same run: `snakemake --version`, Snakemake's plain start. The first dry run of a model also
makes its layout.json, which imports torch and transformers; the later ones, of which the median counts, read it. What
our own code takes of a dry run is measured by itself: import and checks in a fresh interpreter, then the digests.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml  # comes with Snakemake

ROOT = Path(__file__).resolve().parents[1]
BLOCKS, REPEATS, REACH = 32, 5, 15.0
RECIPES = [
    {"sparsity": 0.5, "mask": "wanda"},
    {"sparsity": 0.5, "mask": "wanda", "update": "admm"},
    {"sparsity": 0.5, "mask": "admm", "update": "joint"},
    {"sparsity": "2:4", "mask": "wanda", "update": "admm"},
]
# What workflow/rules/common.smk does when it is read, without Snakemake.
OURS = """
import sys, time
started = time.perf_counter()
sys.path.insert(0, "src")
import yaml
from gramprune import checks, fingerprint
imported = time.perf_counter()
checks.check(yaml.safe_load(open("config.yaml")))
checked = time.perf_counter()
stages = ["calibrate", "capture", "mask", "update", "assemble", "evaluate", "fetch", "summarise"]
for stage in stages:
    fingerprint.code(f"gramprune.stages.{stage}")
print(imported - started, checked - imported, time.perf_counter() - checked)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clone(folder)
        save_model(folder / "model")
        (folder / "config.yaml").write_text(yaml.safe_dump(experiment(), sort_keys=False))
        first, listing = timed(folder, "-m", "snakemake", "--dry-run")
        dry, plain, parts = [], [], []
        for _ in range(REPEATS):  # in turn, so that a disturbance of the machine meets all of them
            dry.append(timed(folder, "-m", "snakemake", "--dry-run")[0])
            plain.append(timed(folder, "-m", "snakemake", "--version")[0])
            parts.append([float(value) for value in timed(folder, "-c", OURS)[1].split()])
    found = re.search(r"^total\s+(\d+)", listing, re.MULTILINE)
    jobs = int(found[1]) if found else 0
    print(f"{BLOCKS} blocks, {2 * len(RECIPES)} runs, {jobs} jobs; median of {REPEATS}\n")
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
    print(f"to reach: {REACH:.0f} s; found: {middle:.2f} s, {middle / REACH:.2f} × that")


def clone(folder: Path) -> None:
    """What a user's clone of the project runs with: Snakefile, workflow and library."""
    for name in ("Snakefile", "workflow", "src"):
        source, target = ROOT / name, folder / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copy2(source, target)


def experiment() -> dict:
    """Every recipe twice: as a chain of pruned blocks and on the dense model's activations."""
    runs = [{"name": f"{p}-{i}", **r, "propagation": p} for p in ("pruned", "dense") for i, r in enumerate(RECIPES)]
    return {
        "model": "./model",
        "calibration": {"dataset": "demo", "length": 64},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 64}},
        "runs": runs,
    }


def save_model(folder: Path) -> None:
    """A random Llama with tiny widths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=BLOCKS,
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
