"""How long the report takes and how large it is: three models, twelve runs each, made by the workflow itself.

    python benchmarks/report.py

Why: a report that takes minutes or does not open in a browser is not read. To reach: 30 s and 10 MB.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import yaml  # comes with Snakemake
from dag import clone

BLOCKS = (4, 2, 1)
PATTERNS = (0.5, 0.6, 0.7, "2:4")
RECIPES = (("magnitude", "none", "none"), ("wanda", "sparseswaps", "none"), ("wanda", "none", "admm"))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clone(folder)
        for blocks in BLOCKS:
            save(folder / f"random{blocks}", blocks)
        (folder / "config.yaml").write_text(yaml.safe_dump(config(), sort_keys=False))
        command = [sys.executable, "-m", "snakemake", "--cores", "all"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-4000:])
        started = time.perf_counter()
        again = [sys.executable, "-m", "gramprune", "report", "results", "-o", "report.html"]
        subprocess.run(again, cwd=folder, check=True, env={"PYTHONPATH": str(folder / "src"), "PATH": ""})
        seconds, size = time.perf_counter() - started, (folder / "report.html").stat().st_size
        jobs = len(list((folder / "results" / "benchmarks").rglob("*.tsv")))
        print(f"{len(BLOCKS)} models × {len(config()['runs'])} runs, {jobs} jobs: {seconds:.1f} s, {size / 1e6:.1f} MB")


def config() -> dict:
    return {
        "model": [f"./random{blocks}" for blocks in BLOCKS],
        "calibration": {"dataset": "demo", "samples": 8, "length": 64},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout", "demo"], "length": 64, "windows": 16}},
        "device": "cpu",
        "runs": [
            {"sparsity": pattern, "mask": mask, "refine": refine, "update": update, "propagation": "dense"}
            for pattern in PATTERNS
            for mask, refine, update in RECIPES
        ],
    }


def save(folder: Path, blocks: int) -> None:
    """A random Llama with the demo's tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from gramprune.text import demo

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(demo.documents(heldout=False)[:20], vocab_size=512, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**demo.config(), "num_hidden_layers": blocks})).save_pretrained(folder)


if __name__ == "__main__":
    main()
