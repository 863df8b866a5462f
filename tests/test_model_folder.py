"""Which files of a folder are the model, where its parameters are in them, and what of it a checkpoint gets."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_llama
from monolithic import prune_in_memory
from problems import assert_sentence
from safetensors.torch import load_file, save_file
from test_families import prune_in_stages
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, PermuteForRope, WeightConverter, WeightRenaming

from gramprune.errors import GrampruneError
from gramprune.model import folder as folders
from gramprune.model import inspect, layout
from gramprune.model.blocks import open_blocks
from gramprune.model.checkpoint import pruned_copy
from gramprune.model.loading import open_model
from gramprune.model.weights import Weights


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(folder.glob("model*.safetensors")) for key, value in load_file(path).items()}


def as_one_file(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    save_file({key: value.clone() for key, value in tensors.items()}, folder / name, {"format": "pt"})


def with_strays(folder):
    """An average of the weights, a vendor's own twin, and old shards beside a new index."""
    noisy = {key: value + 1 for key, value in tensors_of(folder).items()}
    for name in ("model_ema.safetensors", "consolidated.safetensors", "model-00001-of-00002.safetensors"):
        save_file(noisy, folder / name, {"format": "pt"})


def one_file_beside_an_index(folder):
    noisy = {key: value + 1 for key, value in tensors_of(folder).items()}
    save_file(noisy, folder / "model.safetensors", {"format": "pt"})


def named_by_the_config(folder):
    as_one_file(folder, tensors_of(folder), "weights.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "transformers_weights": "weights.safetensors"}))


def tied_under_the_other_name(folder):
    tensors = tensors_of(folder)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    as_one_file(folder, tensors)


def without_the_base_models_name(folder):
    AutoModel.from_pretrained(folder, dtype="auto").save_pretrained(folder / "base")
    as_one_file(folder, tensors_of(folder / "base"))


def with_a_number(folder):
    """Tensors without dimensions, as Apertus has them in its activations."""
    as_one_file(folder, {**tensors_of(folder), "model.layers.0.mlp.act_fn.alpha": torch.tensor(0.5)})


def with_layers_that_the_config_lacks(folder):
    tensors = tensors_of(folder)
    extra = {key.replace("layers.2", "layers.3"): value for key, value in tensors.items() if "layers.2" in key}
    as_one_file(folder, {**tensors, **extra})


def with_tokens_of_images(folder):
    """As Gemma 3 has them: the text model has no embedding for the token that stands for an image."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_token": "<image_soft_token>"}))


def in_the_hubs_cache(folder):
    """Every file a link from a snapshot to a blob."""
    repository = folder / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        shutil.move(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return snapshot


GOOD = [
    with_strays, one_file_beside_an_index, named_by_the_config, tied_under_the_other_name, without_the_base_models_name,
    with_layers_that_the_config_lacks, with_a_number, with_tokens_of_images, in_the_hubs_cache,
]  # fmt: skip


@pytest.mark.parametrize("change", GOOD, ids=lambda f: f.__name__)
def test_what_is_read_is_what_transformers_loads(tiny_model, tmp_path, change):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    folder = change(folder) or folder
    inspect.check(folder, layout.describe(folders.read_config(folder)))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    _, keys = open_blocks(folder)
    for name, value in loaded.state_dict().items():
        assert torch.equal(keys.read(name, value), value), name


def test_the_digest_of_a_model_is_of_what_is_loaded_and_of_the_tokenizer(tiny_model, tmp_path):
    """It tells trainings and configurations of one architecture apart."""

    def copy(name, change=lambda folder: None):
        folder = shutil.copytree(tiny_model, tmp_path / name)
        change(folder)
        return folders.fingerprint(folder)

    one = folders.fingerprint(tiny_model)
    assert one == copy("same") == copy("strays", with_strays)
    config = json.loads((tiny_model / "config.json").read_text())
    changes = [
        lambda folder: save_llama(folder, seed=1),
        lambda folder: (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0})),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
    ]
    assert len({one, *(copy(str(index), change) for index, change in enumerate(changes))}) == 4


def test_a_checkpoint_gets_the_model_and_no_code_pickles_adapters_or_twins(tiny_model, tmp_path):
    source, target = shutil.copytree(tiny_model, tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    with_strays(source)
    for name in ("modeling_x.py", "optimizer.pt", "data.pkl", "adapter_model.safetensors", "adapter_config.json"):
        (source / name).write_text("x")
    (source / "onnx").mkdir()
    (source / "LICENSE").write_text("free")
    pruned_copy(source, target, [])
    copied = {path.name for path in target.iterdir()}
    assert copied == {path.name for path in tiny_model.iterdir()} | {"LICENSE"}
    for name in copied:
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_a_link_out_of_the_folder_is_not_followed(tiny_model, tmp_path):
    source = shutil.copytree(tiny_model, tmp_path / "source")
    (tmp_path / "secret").write_text("mine")
    (source / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(GrampruneError) as error:
        folders.files(source)
    assert_sentence(error, "README.md", "leads out of the model folder")


@pytest.fixture
def converted(tmp_path, tokenizer):
    """A Llama whose files hold queries, keys and values in one tensor, rows of outputs interleaved, and other names."""
    before = register_checkpoint_conversion_mapping.__globals__["get_checkpoint_conversion_mapping"]("llama")
    rules = [
        WeightRenaming(r"\.ffn\.", ".mlp."),
        WeightConverter(
            "attn.qkv.weight",
            ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            operations=[Chunk(dim=0)],
        ),
        WeightConverter("attn.wo.weight", "self_attn.o_proj.weight", operations=[PermuteForRope()]),
    ]
    register_checkpoint_conversion_mapping("llama", rules, overwrite=True)
    folder = tmp_path / "converted"
    save_llama(folder, seed=3, num_key_value_heads=4)
    tokenizer.save_pretrained(folder)
    yield folder
    register_checkpoint_conversion_mapping("llama", before or [], overwrite=True)


def test_tensors_that_transformers_renames_splits_and_permutes_are_pruned_in_their_places(converted, tmp_path):
    stored = tensors_of(converted)
    assert {"model.layers.0.attn.qkv.weight", "model.layers.0.ffn.up_proj.weight"} <= set(stored)
    described = layout.describe(folders.read_config(converted))
    inspect.check(converted, described)
    _, keys = open_blocks(converted)
    assert keys.place("model.layers.1.self_attn.k_proj.weight") == (
        [["model.layers.1.attn.qkv.weight", 32, 64, 1]],
        False,
    )
    assert len(keys.place("model.layers.1.self_attn.o_proj.weight")[0]) > 1

    tokens = torch.randint(0, 300, (6, 24), generator=torch.Generator().manual_seed(0))
    run = {"sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "pruned"}
    prune_in_stages(converted, tokens, run, tmp_path)
    expected = prune_in_memory(converted, tokens, run, batch_size=2).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype="auto").state_dict()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    new = tensors_of(tmp_path / "checkpoint")
    assert new.keys() == stored.keys()
    untouched = [key for key in stored if "layers" not in key or "norm" in key]
    assert untouched and all(torch.equal(new[key], stored[key]) for key in untouched)


def test_weights_are_opened_again_only_where_the_folder_has_changed(tiny_model, tmp_path, monkeypatch):
    folder, path = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "layout.json"
    found = layout.describe(folders.read_config(folder))
    inspect.once(folder, found, path)
    known = json.loads(path.read_text())
    first = Weights(folder).files[0]
    first.write_bytes(first.read_bytes()[:-1])
    os.utime(first, ns=(0, 0))
    with pytest.raises(GrampruneError) as error:
        inspect.once(folder, known, path)
    assert_sentence(error, first, "download it again")


def test_what_stays_dense_is_said_with_its_share_of_the_blocks():
    """Mixtral's routers choose experts, and are not pruned; linears that a pattern excludes neither."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "vocab_size": 160}
    found = layout.describe({"model_type": "mixtral", **sizes, **experts})
    said = layout.summary(found, exclude=["*.o_proj"])
    dense = 2 * (4 * 32 + 32 * 32)
    everything = sum(block["parameters"] for block in found["blocks"])
    assert "mlp.gate (" in said and "self_attn.o_proj (" in said
    pruned = int(re.search(r"linears with ([\d,]+) weights", said)[1].replace(",", ""))
    assert f"{pruned / everything:.1%} of the blocks' parameters" in said
    assert everything - pruned - dense == 2 * 2 * 32  # norms
    assert f"{2 * (3 + 4 * 2)} linears" in said  # q, k and v, and two of each of the four experts


def test_matrices_of_several_blocks_are_linears_of_the_first_that_works_with_them():
    """Zamba2 with two transformers for three blocks: the first block and the last have one together."""
    mamba = {"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 2, "mamba_expand": 2, "mamba_headdim": 32}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 160}
    attention = {"num_attention_heads": 4, "num_key_value_heads": 4, "attention_head_dim": 16, "adapter_rank": 4}
    kinds = {"layers_block_type": ["hybrid"] * 3, "num_mem_blocks": 2, "tie_word_embeddings": True}
    found = layout.describe({"model_type": "zamba2", **sizes, **attention, **mamba, **kinds})
    first, own, again = found["blocks"]
    name, adapter = "shared_transformer.self_attn.q_proj", "shared_transformer.feed_forward.gate_up_proj_adapter_list"
    assert name in first["linears"] and name in own["linears"] and again["repeated"][name] == 64 * 64
    assert first["shared"][name] == again["shared"][name] == [0, 2] and not own["shared"]
    assert name not in [*again["linears"], *again["dense"], *first["dense"]]
    # Each block works with one adapter of its own, and the first has the last one's too.
    assert f"{adapter}.0.0" in first["linears"] and f"{adapter}.2.0" in again["linears"]
    assert first["repeated"] == {f"{adapter}.2.{each}": size for each, size in enumerate((4 * 32, 96 * 4))}
    assert not own["repeated"] and f"{adapter}.2.0" not in [*again["shared"], *first["linears"], *first["dense"]]
    linears = [linear for block in found["blocks"] for linear in block["linears"].values()]
    said = layout.summary(found, [])
    assert f"{len(linears)} linears with {sum(map(layout.weights_of, linears)):,} weights" in said
    assert "stay dense: mamba_decoder.mamba.conv1d (" in said


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_not_finite_is_named_wherever_it_is_read(tiny_model, tmp_path, name):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = tensors_of(folder)
    tensors[name][0, 0] = float("nan")
    as_one_file(folder, tensors)

    def block():
        blocks, _ = open_blocks(folder)
        with blocks.loaded(1):
            blocks.forward(torch.zeros(1, 2, dtype=torch.int64))

    for read in (block, lambda: open_model(folder)):
        with pytest.raises(GrampruneError) as error:
            read()
        assert_sentence(error, name, "NaN")


def test_a_model_that_transformers_would_fill_at_random_is_not_evaluated(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(GrampruneError) as error:
        open_model(folder)
    assert_sentence(error, "lm_head.weight", "at random")
