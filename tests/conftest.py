"""A real little world for the tests: text of the standard library, tiny models, and a clone that Snakemake runs in."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As many as in the jobs, whatever the shell says: sums are split by threads. Small problems need no more than one.
THREADS = int(os.environ.get("GRAMPRUNE_TEST_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)

sys.path.insert(0, str(Path(__file__).parent))


LONGEST = ("test_slurm.py", "test_demo.py")  # one waits, the other computes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests: of two processes neither is left alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path not in slow))


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """English text: the topics of Python's own help."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


@pytest.fixture(scope="session")
def tokenizer(documents, tmp_path_factory):
    """A byte-level tokenizer with 300 tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(documents[:20], vocab_size=300, special_tokens=["<s>"], show_progress=False)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all test processes of this session see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made by the first test process that needs it; others wait for it."""
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            part = folder.with_suffix(".part")
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tokenizer, shared) -> Path:
    """A random Llama: 3 blocks, grouped queries, bfloat16, tied embeddings, several shards."""

    def make(folder: Path) -> None:
        save_llama(folder, seed=0)
        tokenizer.save_pretrained(folder)

    return once(shared / "tiny", make)


def save_llama(folder: Path, seed: int, **changes: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,  # so that activations differ between directions
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="30KB")


class Clone:
    """A user's clone of the project: Snakefile, workflow, profile and library, copied; results beside them."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None):
        self.folder = folder
        self.environment = environment
        for name in ("Snakefile", "workflow", "profiles", "local", "slurm", "src"):
            source, target = ROOT / name, folder / name
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copy2(source, target)

    def write(self, config: dict[str, Any], name: str = "config.yaml") -> None:
        (self.folder / name).write_text(yaml.safe_dump(config, sort_keys=False))

    def snakemake(
        self, *arguments: str, config: dict[str, Any] | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.CompletedProcess:
        """Run Snakemake in the clone, with another configuration than config.yaml if one is given.

        prefix: a command that runs it.
        """
        if config is not None:
            self.write(config, "other.yaml")
            arguments = (*arguments, "--configfile", "other.yaml")
        if not prefix:
            arguments = ("--cores", "2", *arguments)
            return forked.snakemake(self.folder, arguments, self.variables, timeout=1800)
        started = self.start(*arguments, prefix=prefix, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = started.communicate(timeout=1800)
        finally:
            started.kill()
        return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)

    def start(self, *arguments: str, prefix: Sequence[str] = (), **pipes: Any) -> subprocess.Popen:
        """Start Snakemake in the clone and do not wait for it. prefix: a command that runs it."""
        command = [*prefix, sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.variables, text=True, **pipes)

    @property
    def variables(self) -> dict[str, str]:
        return {**(self.environment or os.environ), "PYTHONPATH": "", "COLUMNS": "200"}

    def run(self, *arguments: str, config: dict[str, Any] | None = None) -> None:
        done = self.snakemake(*arguments, config=config)
        assert done.returncode == 0, done.stderr[-6000:]

    def planned(self, config: dict[str, Any] | None = None) -> Counter:
        """What a dry run would do: how many jobs per (rule, run or trail)."""
        done = self.snakemake("--dry-run", config=config)
        assert done.returncode == 0, done.stderr[-6000:]
        jobs: Counter = Counter()
        rule = None
        for line in done.stdout.splitlines():
            words = line.split()
            if line.startswith(("rule ", "localrule ")):
                rule, wildcards = words[1].rstrip(":"), {}
            elif rule and words[:1] == ["wildcards:"]:
                wildcards = dict(word.rstrip(",").split("=", 1) for word in words[1:])
            elif rule and words[:1] == ["resources:"]:
                if rule != "all":
                    jobs[rule, wildcards.get("run", wildcards.get("trail"))] += 1
                rule = None
        return jobs


@pytest.fixture(scope="session")
def texts(documents, shared) -> dict[str, Path]:
    """Two local files: calibration as .jsonl, evaluation as .txt."""

    def make(folder: Path) -> None:
        folder.mkdir()
        with open(folder / "calibration.jsonl", "w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents[:40])
        (folder / "evaluation.txt").write_text("\n\n".join(documents[40:44])[:6000])

    folder = once(shared / "texts", make)
    return {"calibration": folder / "calibration.jsonl", "evaluation": folder / "evaluation.txt"}


@pytest.fixture(scope="session")
def config(tiny_model, texts) -> dict[str, Any]:
    """Chains of pruned blocks and independent blocks; an update, none, a joint method; a refinement; a target."""
    return {
        "model": str(tiny_model),
        "datasets": {name: {"path": str(path)} for name, path in texts.items()},
        "calibration": {"dataset": "calibration", "samples": 12, "length": 64},
        "evaluation": {"perplexity": {"datasets": ["evaluation"], "length": 64}},
        "dtype": "bfloat16",  # the checkpoint's, also where the CPU is slow in it
        "batch_size": 4,
        "threads": THREADS,
        "runs": [
            {"name": "chain", "sparsity": 0.5, "mask": "wanda", "update": "admm"},
            {"name": "joint", "sparsity": "2:4", "mask": "admm", "update": "joint"},
            {"name": "plain", "sparsity": 0.5, "mask": "wanda", "propagation": "dense"},
            {"name": "apart", "sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "dense"},
            {"name": "refined", "sparsity": 0.5, "mask": "wanda", "refine": "sparseswaps"},
            {
                "name": "aimed",
                "sparsity": 0.5,
                "mask": "wanda",
                "refine": "sparseswaps",
                "update": "admm",
                "target": "dense",
            },
        ],
    }


@pytest.fixture(scope="module")
def clone(config, shared, tmp_path_factory) -> Clone:
    """A clone in which the whole experiment has run once. Tests only read it, or put back what they change.

    It runs once, and every file of tests has a copy of its own: what one forgets to put back misleads no other.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        first = Clone(folder)
        first.write(config)
        first.run()

    return copied(once(shared / "finished", make), tmp_path_factory.mktemp("clone"))


def copied(finished: Path, folder: Path) -> Clone:
    """A clone with all that another one has made."""
    made = Clone(folder)
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    return made


def changed(config: dict[str, Any], change) -> dict[str, Any]:
    """A copy of a configuration after `change(copy)`."""
    new = copy.deepcopy(config)
    change(new)
    return new
