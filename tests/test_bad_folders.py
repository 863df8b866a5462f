"""Model folders as people really have them: each is refused in one sentence, from its config, headers and tokenizer."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import changed
from families import WIDE
from problems import assert_sentence
from safetensors.torch import load_file, save_file

from gramprune.errors import GrampruneError
from gramprune.model import folder as folders
from gramprune.model import inspect, layout

Change = Callable[[Path], None]
SHARD = "model-00002-of-00002.safetensors"


def file(name: str, content: bytes | str | None) -> Change:
    """A file with other content, or none."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def config(**settings) -> Change:
    """config.json with other settings; ... leaves one out."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text()), **settings}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def of_another_kind(**settings) -> Change:
    """config.json of another model type altogether."""
    return lambda folder: (folder / "config.json").write_text(json.dumps({**WIDE, **settings}))


def tensors(edit: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    """The weights in one file, after an edit."""

    def change(folder: Path) -> None:
        found = {key: value for path in folder.glob("model-*") for key, value in load_file(path).items()}
        edit(found)
        for path in folder.glob("model*"):
            path.unlink()
        save_file({key: value.clone() for key, value in found.items()}, folder / "model.safetensors", {"format": "pt"})

    return change


def shorter(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def header(edit: Callable[[dict], None]) -> Change:
    """The second shard with an edited header over the same bytes."""

    def change(folder: Path) -> None:
        raw = (folder / SHARD).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        content = json.loads(raw[8 : 8 + length])
        edit(content)
        new = json.dumps(content).encode()
        (folder / SHARD).write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return change


def overlapping(content: dict) -> None:
    places = sorted((value["data_offsets"], key) for key, value in content.items() if key != "__metadata__")
    (start, end), key = places[1]
    content[key]["data_offsets"] = [start - 64, end - 64]


def index(edit: Callable[[dict], None]) -> Change:
    def change(folder: Path) -> None:
        path = folder / folders.INDEX
        content = json.loads(path.read_text())
        edit(content["weight_map"])
        path.write_text(json.dumps(content))

    return change


def twice(folder: Path) -> None:
    first = folder / SHARD.replace("00002-of", "00001-of")
    both = load_file(first)
    key = next(iter(load_file(folder / SHARD)))
    save_file({**both, key: load_file(folder / SHARD)[key]}, first, {"format": "pt"})


def without_head(folder: Path) -> None:
    config(tie_word_embeddings=False)(folder)


def reward_model(folder: Path) -> None:
    without_head(folder)
    tensors(lambda found: found.update({"score.weight": torch.ones(1, 32)}))(folder)


def other_tokenizer(**changes) -> Change:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save_pretrained(folder)


def link(name: str) -> Change:
    def change(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


BERT = dict(model_type="bert", pad_token_id=0)
XLM = dict(model_type="xlm", emb_dim=32, n_layers=3, n_heads=4)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 456\n"

BAD: dict[str, tuple[Change, tuple[str, ...]]] = {
    # files
    "no weights": (lambda f: [p.unlink() for p in f.glob("model*")], ("holds no model.safetensors",)),
    "pickled weights only": (
        lambda f: [[p.unlink() for p in f.glob("model*")], (f / "pytorch_model.bin").write_text("x")],
        ("pytorch_model.bin", "save_pretrained"),
    ),
    "a missing shard": (file(SHARD, None), (SHARD, "is missing", "download it again")),
    "a pointer of Git LFS": (file(SHARD, POINTER), (SHARD, "Git LFS pointer", "download it again")),
    "an empty file": (file(SHARD, ""), (SHARD, "is empty", "download it again")),
    "a page of the hub instead of a file": (file(SHARD, "<!doctype html>" * 9), (SHARD, "not a whole safetensors")),
    "a truncated file": (shorter(SHARD), (SHARD, "truncated", "download it again")),
    "a header that is a list": (file(SHARD, struct.pack("<Q", 2) + b"[]"), (SHARD, "not a whole safetensors")),
    "overlapping tensors": (header(overlapping), (SHARD, "is damaged", "begins at byte")),
    "a shape that does not fit its bytes": (
        header(lambda c: next(v for k, v in c.items() if k != "__metadata__").update(shape=[3, 3])),
        (SHARD, "not a whole safetensors"),
    ),
    "an index that is no JSON": (file(folders.INDEX, "{"), (folders.INDEX, "weight_map", "download it again")),
    "an index without a map": (file(folders.INDEX, '{"metadata": {}}'), (folders.INDEX, "weight_map")),
    "an index of numbers": (index(lambda m: m.update(dict.fromkeys(m, 3))), (folders.INDEX, "weight_map")),
    "an index that leads out": (
        index(lambda m: m.update({"model.norm.weight": "../other.safetensors"})),
        ("../other.safetensors", "leads out of the model folder"),
    ),
    "an index of another checkpoint": (
        index(lambda m: m.update({"model.norm.bias": SHARD})),
        (folders.INDEX, "'model.norm.bias'", "different checkpoints"),
    ),
    "a tensor in two shards": (twice, ("which", "has too", "download it again")),
    "weights that are a link": (link(SHARD), (SHARD, "leads out of the model folder")),
    "a config that is a link": (link("config.json"), ("config.json", "leads out of the model folder")),
    "a file of weights that is not safetensors": (
        config(transformers_weights="weights.bin"), ("transformers_weights", "weights.bin")
    ),
    "a file of weights elsewhere": (config(transformers_weights="../w.safetensors"), ("leads out of the",)),
    # config.json
    "no config": (file("config.json", None), ("has no config.json",)),
    "half a config": (file("config.json", '{"model_type": "lla'), ("config.json", "expected JSON with a model_type")),
    "a list as config": (file("config.json", "[1]"), ("config.json", "expected JSON with a model_type")),
    "a config as UTF-16": (file("config.json", '{"model_type": "llama"}'.encode("utf-16")), ("config.json", "JSON")),
    "no model_type": (config(model_type=...), ("config.json", "model_type")),
    "an unknown model_type": (config(model_type="lama"), ("config.json", "'lama'")),
    "a stranger's code": (
        config(model_type="lama", auto_map={"AutoConfig": "configuration.X", "AutoModelForCausalLM": "modeling.Y"}),
        ("'lama'", "not run"),
    ),
    "text for a number": (config(hidden_size="32"), ("hidden_size",)),
    "a number that is no size": (config(num_hidden_layers=-1), ("num_hidden_layers", "-1")),
    "no blocks": (config(num_hidden_layers=0), ("num_hidden_layers is 0",)),
    "heads that do not divide": (config(num_attention_heads=5), ("32", "5")),
    "200,000 layers": (config(num_hidden_layers=200_000), ("num_hidden_layers", "200,000")),
    "a vocabulary of a billion": (config(vocab_size=10**9), ("vocab_size", "1,000,000,000")),
    "an unknown dtype": (config(dtype="float17"), ("dtype", "'float17'")),
    "a dtype of integers": (config(dtype="int8"), ("dtype", "int8")),
    "an unknown rope": (config(rope_parameters={"rope_type": "magic", "rope_theta": 1.0}), ("magic",)),
    "an unknown activation": (config(hidden_act="magic"), ("magic",)),
    "quantised to 8 bits": (config(quantization_config=FP8), ("quantization_config", "fp8", "16 or 32 bits")),
    "quantised by GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), ("gptq", "16 or 32 bits")),
    "quantised, the old way": (config(compression_config={"format": "int"}), ("compression_config", "16 or 32 bits")),
    "sizes of another model": (config(intermediate_size=64), ("mlp.", "[48, 32]", "[64, 32]", "config.json")),
    "more blocks than there are weights for": (config(num_hidden_layers=5), ("model.layers.3.", "at random")),
    # tensors
    "a head that was never saved": (without_head, ("lm_head.weight", "at random")),
    "a reward model": (reward_model, ("lm_head.weight", "at random")),
    "a block without a norm": (
        tensors(lambda t: t.pop("model.layers.1.input_layernorm.weight")),
        ("model.layers.1.input_layernorm.weight", "at random"),
    ),
    "integers": (
        tensors(lambda t: t.update({k: v.to(torch.int32) for k, v in t.items() if "up_proj" in k})),
        ("mlp.up_proj.weight", "I32", "quantised"),
    ),
    "8 bits, and no word of it": (
        tensors(lambda t: t.update({k: v.to(torch.float8_e4m3fn) for k, v in t.items() if "up_proj" in k})),
        ("mlp.up_proj.weight", "F8_E4M3", "quantised"),
    ),
    "two tensors for one parameter": (
        tensors(lambda t: t.update({"norm.weight": t["model.norm.weight"] + 1})),
        ("model.norm.weight", "both stand for"),
    ),
    # families
    "an encoder": (of_another_kind(**BERT), ("bert", "later token", "causal")),
    "an encoder and a decoder": (of_another_kind(model_type="t5"), ("t5", "no causal language model")),
    "a model of pictures": (of_another_kind(model_type="vit"), ("vit", "no causal language model")),
    "blocks in pieces": (of_another_kind(**XLM), ("xlm", "one list of 3 decoder blocks", "attentions")),
    # tokenizer
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        ("tokenizer", "cannot be opened"),
    ),
    "half a tokenizer": (shorter("tokenizer.json"), ("tokenizer", "cannot be opened")),
    "a tokenizer of Git LFS": (file("tokenizer.json", POINTER), ("tokenizer.json", "Git LFS pointer")),
    "tokens without an embedding": (more_tokens, ("<|im_", "300", "no embedding")),
}  # fmt: skip


def planned(folder: Path) -> None:
    """What planning looks at."""
    inspect.check(folder, layout.describe(folders.read_config(folder)))


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """A whole model in two shards."""
    from transformers import AutoModelForCausalLM

    target = shutil.copytree(tiny_model, tmp_path / "model")
    for path in target.glob("model*"):
        path.unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype="auto").save_pretrained(target, max_shard_size="55KB")
    assert len(list(target.glob("model-*"))) == 2
    return target


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_is_no_whole_model_is_refused_in_one_sentence(folder, what):
    change, words = BAD[what]
    planned(folder)
    change(folder)
    with pytest.raises(GrampruneError) as error:
        planned(folder)
    assert_sentence(error, *words)


def test_blocks_that_work_twice_on_the_same_tokens_are_refused(folder, monkeypatch):
    """No type of transformers has such blocks in one list; hidden states put in front of them twice would be wrong."""
    from transformers import LlamaModel

    once = LlamaModel.forward
    monkeypatch.setattr(LlamaModel, "forward", lambda self, **given: (once(self, **given), once(self, **given))[1])
    with pytest.raises(GrampruneError) as error:
        planned(folder)
    assert_sentence(error, "llama", "block 0", "several times")


@pytest.mark.parametrize("source", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused(tmp_path, source):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GrampruneError) as error:
        folders.weight_files(tmp_path / source)
    assert_sentence(error, source, "does not exist")


@pytest.mark.parametrize("what", ["a missing shard", "a stranger's code", "an encoder", "tokens without an embedding"])
def test_a_bad_folder_is_said_by_a_dry_run(clone, config, folder, what):
    change, words = BAD[what]
    change(folder)
    done = clone.snakemake("--dry-run", config=changed(config, lambda c: c.update(model=str(folder), results="bad")))
    said = [line for line in done.stderr.splitlines() if line.startswith("gramprune: ")]
    assert done.returncode == 1 and len(set(said)) == 1
    assert all(word in said[0] for word in words)
    assert "Traceback" not in done.stderr and "[y/N]" not in done.stdout + done.stderr
