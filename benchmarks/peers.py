"""What one run costs beside llm-compressor, from the text to the saved checkpoint: wall time and peak memory.

    python benchmarks/peers.py --model FOLDER --calibration TEXT --peer PYTHON [--keep NAME]

--peer is a Python that has llmcompressor, in an environment of its own: its releases ask for other versions of
transformers than ours. Measured with 0.14. A model is a folder; a text is a .txt, .jsonl or .parquet file.

Why: a job per stage and block makes a run restartable and keeps one block in memory; llm-compressor does all in one
process that holds the model. To reach, with the same calibration tokens, dtype and cores: SparseGPT 1.0 and Wanda 1.4
times its wall time, eight runs that share what they can half of eight times its time, and 0.45 times its memory.

How: both start from files with nothing imported. Ours is `snakemake --cores N` until the checkpoint is there; its
memory is that of the largest job. llm-compressor gets the very tokens that our calibration stage has written, and
prunes block after block, as our runs do (its `sequential` pipeline). Nothing else may run: look at `uptime` first.
`--keep` keeps the figures as a dated file of results.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import tables
import yaml  # comes with Snakemake
from dag import clone

PEERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
EIGHT = [{"recipe": ["magnitude", "wanda", "ria", "sparsegpt"], "sparsity": [0.5, "2:4"], "propagation": "dense"}]
COLUMNS = {
    "": "",
    "gramprune, s": ".0f",
    "MiB": ",.0f",
    "llm-compressor, s": ".0f",
    "its MiB": ",.0f",
    "time": ".2f",
    "memory": ".2f",
}
PEER = """
import json, resource, sys
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers import pruning
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens, name, dtype, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
rows = load_file(tokens)["tokens"]
data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
recipe = [getattr(pruning, name)(sparsity=0.5, mask_structure="2:4", ignore=["re:.*lm_head"])]
oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(rows), max_seq_length=rows.shape[1],
        shuffle_calibration_samples=False, pipeline="sequential", batch_size=1)
model.save_pretrained(output)
AutoTokenizer.from_pretrained(folder).save_pretrained(output)
zeros = [float((m.weight == 0).float().mean()) for n, m in model.named_modules() if n.endswith("proj")]
print(json.dumps({"zeros": min(zeros), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--peer", required=True, help="a Python that has llmcompressor")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--keep", help="name of a file of results")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load before: {load:.2f}; {arguments.cores} cores, {arguments.dtype}", flush=True)
    rows = []

    def add(name: str, mine: tuple[float, int], peer: tuple[float, int]) -> None:
        rows.append([name, *map(float, mine), *map(float, peer), mine[0] / peer[0], mine[1] / peer[1]])
        print(*(each if isinstance(each, str) else f"{each:.2f}" for each in rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clone(folder)
        peers = []
        for recipe in PEERS:
            mine = [ours(folder, arguments, [{"recipe": recipe, "sparsity": "2:4"}]) for _ in range(arguments.repeats)]
            tokens = next((folder / "results").rglob("calibration.safetensors"))
            peer = [theirs(folder, arguments, PEERS[recipe], tokens) for _ in range(arguments.repeats)]
            peers.append(min(peer))
            add(f"{recipe} 2:4", min(mine), min(peer))
        eight = 8 * sum(seconds for seconds, _ in peers) / len(peers), max(mib for _, mib in peers)
        add("eight runs, of eight", ours(folder, arguments, EIGHT), eight)
    tables.keep(arguments.keep, COLUMNS, rows, load=load)


def ours(folder: Path, arguments: argparse.Namespace, runs: list[dict]) -> tuple[float, int]:
    """Seconds from nothing to the checkpoints, and MiB of the largest job."""
    config = {
        "model": {"source": str(arguments.model.resolve()), "name": "model"},
        "datasets": {"text": {"path": str(arguments.calibration.resolve())}},
        "calibration": {"dataset": "text", "samples": arguments.samples, "length": arguments.length},
        "evaluation": {"perplexity": {"datasets": ["text"], "length": arguments.length, "windows": 1}},
        "runs": runs,
        "dtype": arguments.dtype,
        "device": "cpu",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(["rm", "-rf", str(folder / "results")], check=True)
    command = [sys.executable, "-m", "snakemake", "--cores", str(arguments.cores), "--until", "assemble", "--quiet"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    logs = [path.read_text() for path in (folder / "results/logs").rglob("*.log")]
    return seconds, max(int(found) for text in logs for found in re.findall(r"peak memory (\d+) MiB", text))


def theirs(folder: Path, arguments: argparse.Namespace, modifier: str, tokens: Path) -> tuple[float, int]:
    """The same of llm-compressor."""
    command = [arguments.peer, "-c", PEER, str(arguments.model), str(tokens), modifier, arguments.dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.cores), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run([*command, str(folder / "peer")], capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    found = yaml.safe_load(done.stdout.splitlines()[-1])
    assert found["zeros"] == 0.5, found
    return seconds, found["mib"]


if __name__ == "__main__":
    main()
