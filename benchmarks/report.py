"""How long the report takes and how large it is: three models, twelve runs each, made by the workflow itself.

    python benchmarks/report.py
    python benchmarks/report.py --large --keep /tmp/large     three models × 40 runs × 30 blocks, kept to be looked at

Why: a report that takes minutes or does not open in a browser is not read. To reach: 30 s and 10 MB.

`--large` runs no job: its tables, records and evaluations have the form that the workflow gives them, and figures drawn
at random, so they say something of the report and nothing of methods.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import yaml  # comes with Snakemake
from dag import clone

BLOCKS = (4, 2, 1)
PATTERNS = (0.5, 0.6, 0.7, "2:4")
RECIPES = (("magnitude", "none", "none"), ("wanda", "sparseswaps", "none"), ("wanda", "none", "admm"))
LARGE = 30  # blocks
MORE = (
    ("magnitude", "none", "none"),
    ("wanda", "none", "none"),
    ("ria", "none", "none"),
    ("wanda", "sparseswaps", "none"),
    ("wanda", "dsnot", "none"),
    ("wanda", "none", "admm"),
    ("sparsegpt", "none", "joint"),
    ("wanda", "none", "exact"),
    ("admm", "none", "joint"),
    ("alps", "none", "joint"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="three models × 40 runs × 30 blocks, figures at random")
    parser.add_argument("--keep", type=Path, help="a folder, not there yet, in which all is left")
    chosen = parser.parse_args()
    if chosen.keep:
        chosen.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place:
        folder = chosen.keep or Path(place)
        settings = config(MORE if chosen.large else RECIPES)
        clone(folder)
        for blocks in BLOCKS:
            save(folder / f"random{blocks}", blocks)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        if chosen.large:
            jobs = made_up(folder, settings)
        else:
            command = [sys.executable, "-m", "snakemake", "--cores", "all"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-4000:])
            jobs = len(list((folder / "results" / "logs").rglob("*.json")))  # their records
        started = time.perf_counter()
        again = [sys.executable, "-m", "gramprune", "report", "results", "-o", "report.html"]
        subprocess.run(again, cwd=folder, check=True, env={"PYTHONPATH": str(folder / "src"), "PATH": ""})
        seconds, size = time.perf_counter() - started, (folder / "report.html").stat().st_size
        pictures = sum(path.stat().st_size for path in (folder / "report_pictures").iterdir())
        print(
            f"{len(BLOCKS)} models × {len(settings['runs'])} runs, {jobs} jobs: {seconds:.1f} s, {size / 1e6:.1f} MB, "
            f"pictures {pictures / 1e6:.1f} MB"
        )


def config(recipes: tuple) -> dict:
    chains = recipes is MORE  # for runs with an update: jobs of their own, which is what makes graphs large
    return {
        "model": [f"./random{blocks}" for blocks in BLOCKS],
        "calibration": {"dataset": "demo", "samples": 8, "length": 64},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout", "demo"], "length": 64, "windows": 16}},
        "device": "cpu",
        "runs": [
            {
                "sparsity": pattern,
                "mask": mask,
                "refine": refine,
                "update": update,
                "propagation": "pruned" if chains and update != "none" else "dense",
            }
            for pattern in PATTERNS
            for mask, refine, update in recipes
        ],
    }


def save(folder: Path, blocks: int) -> None:
    """A random Llama with the demo's tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from gramprune.model.demo import DEMOS
    from gramprune.text import demo

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(demo.documents(heldout=False)[:20], vocab_size=512, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**DEMOS["demo"].config, "num_hidden_layers": blocks})).save_pretrained(folder)


def made_up(folder: Path, config: dict) -> int:
    """A folder of results as that experiment would leave it with more blocks, and how many jobs it stands for."""
    from gramprune.experiment import outputs, pipeline, settings
    from gramprune.report import results
    from gramprune.storage import files

    subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--quiet", "all"], cwd=folder, check=True, capture_output=True
    )
    known, draw, place = settings.load(config), np.random.default_rng(0), folder / "results"
    layouts = {}
    for model in known.model:
        layout = files.read_json(place / model.name / "layout.json")
        layouts[model.name] = layout | {"blocks": [copy.deepcopy(layout["blocks"][0]) for _ in range(LARGE)]}
        files.write_json(place / model.name / "layout.json", layouts[model.name])
    work = pipeline.jobs(known, layouts)
    strength = {run.name: draw.lognormal(-2, 0.5) * (float(run.sparsity) if ":" not in str(run.sparsity) else 0.5)
                for run in known.runs}  # fmt: skip
    metrics = []
    for key in work:
        taken = {"seconds": draw.gamma(2, 20), "start_seconds": 0.5, "cpu_seconds": draw.gamma(2, 20)}
        record = place / "logs" / f"{outputs.stem(key)}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(record, {**taken, "host_mb": int(draw.integers(300, 4000)), "ended": 1.0})
        if key[0] in ("capture", "mask", "refine", "update"):
            metrics.append(stage_metrics(key, layouts[key[1]], draw))
    evaluations = {}
    for row in known.summary_settings:
        losses = np.random.default_rng(1).normal(2.5, 0.3, 16) + strength.get(row["run"], 0) * draw.lognormal(0, 0.2)
        for text in known.evaluation.perplexity.datasets:
            found = evaluation(row["model"], text.dataset, losses)
            path = place / row["model"] / row["run"] / "evaluation" / f"perplexity_{text.dataset}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, found)
            evaluations.setdefault((row["model"], row["run"]), []).append(found)
    sparsity = {
        (model, run.name): 0.5 if ":" in str(run.sparsity) else float(run.sparsity)
        for model in layouts
        for run in known.runs
    }
    rows = results.summary_rows(known.summary_settings, evaluations, sparsity)
    results.write_table(results.table(rows), place / "summary.parquet")
    results.write_table(results.table(results.layer_rows(metrics)), place / "layers.parquet")
    files.write_json(place / "experiment.json", {"config": known.experiment, "versions": files.versions()})
    return len(work)


def stage_metrics(key: tuple, layout: dict, draw: np.random.Generator) -> dict:
    """What a stage would have measured of a block's linears."""
    stage, model, trail, block, *name = key
    labels = {"model": model, "run" if stage == "update" else "trail": trail, "block": f"{block:03d}"}
    if name:
        mask, _, refine = name[0].partition("+")
        labels |= {"mask": mask, **({"refine": refine} if refine else {})}
    linears = []
    for place, (linear, shape) in enumerate(layout["blocks"][block]["linears"].items()):
        found = {"linear": linear, "rows": shape["rows"], "columns": shape["columns"], "tokens": 512, "dead_inputs": 0}
        if stage != "capture":
            relative = float(0.02 * (1 + place) * np.exp(block / 20) * draw.lognormal(0, 0.4))
            found |= {"error": 1000 * relative, "relative_error": relative, "seconds": 1.0}
        if stage in ("refine", "update"):
            found["error_before"] = found["error"] * draw.lognormal(0.4, 0.3)
        if stage == "refine":
            found |= {"swaps": 900, "certified": 0.9, "curve": list(np.linspace(found["error_before"], found["error"]))}
        if stage == "update":
            found["damping"] = 0.01
        linears.append(found)
    return {"stage": stage, "labels": labels, "seconds": 9.0, "peak_host_mb": 900, "linears": linears}


def evaluation(model: str, text: str, losses: np.ndarray) -> dict:
    """What the evaluation on a text would have found."""
    source = {"settings": {"demo": text}, "documents": 38, "sha256": "0" * 64}
    return {
        "dataset": text, "perplexity": float(np.exp(losses.mean())), "predicted_tokens": 63 * len(losses),
        "windows": len(losses), "length": 64, "stride": 64, "tokens_per_window": [63] * len(losses),
        "loss_per_window": losses.tolist(), "tokens_sha256": text, "dtype": "float32", "data": source,
        "model": {"source": f"./{model}", "fingerprint": "0" * 16}, "versions": {"torch": "2"},
        "hardware": {"cpu": "none", "cores": 1},
    }  # fmt: skip


if __name__ == "__main__":
    main()
