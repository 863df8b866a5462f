"""Families of models without family code: blocks run alone as in the whole model, and whole prunings agree."""

import json
import os
import platform

import pytest
import torch
from conftest import THREADS
from families import CONFIGS, config
from monolithic import block_list, load, prune_in_memory
from safetensors import safe_open

from gramprune.experiment import pipeline
from gramprune.experiment.run import Run
from gramprune.model import layout
from gramprune.model.blocks import HIDDEN, open_blocks
from gramprune.stages.assemble import assemble
from gramprune.stages.capture import capture
from gramprune.stages.fetch import fetch_model
from gramprune.stages.mask import mask_block
from gramprune.stages.reconstruct import reconstruct_block
from gramprune.stages.update import update_block
from gramprune.storage import artifacts

DTYPES = {"llama": torch.float16, "opt": torch.float16, "gpt2": torch.bfloat16, "qwen3": torch.bfloat16}
DTYPES |= {"mamba": torch.bfloat16, "gemma3": torch.bfloat16, "falcon": torch.float16}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    """A random model of the family in several shards; float32 unless DTYPES says otherwise."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = DTYPES.get(request.param, torch.float32)
    folder = tmp_path_factory.mktemp(request.param)
    random = AutoModelForCausalLM.from_config(config(request.param, initializer_range=0.1)).to(dtype)
    random.save_pretrained(folder, max_shard_size="40KB")
    return folder


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 160, (6, 24), generator=torch.Generator().manual_seed(0))


def hidden_states(folder, tokens, place=torch.clone):
    """What enters and leaves every block of the whole model. place: where its weights lie, see `load`."""
    whole = load(folder, place)
    entered, left = {}, {}

    def note(index):
        def hook(module, args, kwargs, output):
            entered[index] = args[0] if args else kwargs["hidden_states"]
            left[index] = output[0] if isinstance(output, tuple) else output

        return hook

    for index, block in enumerate(block_list(whole)):
        block.register_forward_hook(note(index), with_kwargs=True)
    with torch.no_grad():
        whole(input_ids=tokens, use_cache=False)
    return entered, left


def misplaced(values):
    """A copy that begins 8 bytes behind a multiple of 64, as a tensor of a mapped file may."""
    room = torch.empty(values.nbytes + 8, dtype=torch.uint8)
    return room[8:].view(values.dtype).view(values.shape).copy_(values)


@pytest.mark.bits
@pytest.mark.skipif("ATEN_CPU_CAPABILITY" not in os.environ, reason="no other kernels are asked for")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="there are no others here")
def test_the_kernels_and_threads_are_those_that_are_asked_for():
    assert torch.backends.cpu.get_cpu_capability() == os.environ["ATEN_CPU_CAPABILITY"].upper()
    assert torch.get_num_threads() == THREADS


@pytest.mark.bits
def test_a_block_alone_gives_the_bits_of_the_whole_model(model, tokens):
    """On the same machine, with as many threads, and weights that begin at multiples of 64 bytes in both."""
    entered, left = hidden_states(model, tokens)
    blocks, _ = open_blocks(model)
    for index in reversed(range(len(blocks))):
        with blocks.loaded(index):
            first, output = blocks.forward(tokens, {HIDDEN: entered[index]} if index else None)
        assert torch.equal(first[HIDDEN], entered[index])
        assert torch.equal(output[HIDDEN], left[index])


@pytest.mark.bits
def test_a_block_alone_gives_the_whole_models_outputs_to_the_last_places_wherever_its_weights_lie(model, tokens):
    """A sum in another order: some units in the last place of what is added up, so of the largest outputs."""
    entered, left = hidden_states(model, tokens, misplaced)
    blocks, _ = open_blocks(model)
    for index in range(len(blocks)):
        with blocks.loaded(index):
            output = blocks.forward(tokens, {HIDDEN: entered[index]})[1][HIDDEN]
        unit = torch.finfo(output.dtype).eps * left[index].abs().max().double()
        assert (output.double() - left[index].double()).abs().max() <= 4 * unit


def test_token_embeddings_are_read_where_a_block_gets_more_of_them_than_hidden_states(model, tokens):
    """Of these families only Zamba's blocks get them; the test above shows that all give the right bits."""
    entered, _ = hidden_states(model, tokens)
    blocks, _ = open_blocks(model)
    table = blocks.model.get_input_embeddings().weight
    with blocks.loaded(2):
        blocks.forward(tokens, {HIDDEN: entered[2]})
        used = "zamba" in blocks.kind
        assert blocks.spared == (0 if used else table.numel())
        assert used or blocks.model.get_input_embeddings().weight.untyped_storage().nbytes() <= 4
    with blocks.loaded(0):
        blocks.forward(tokens)
    assert blocks.spared == 0


def test_the_layout_from_config_alone_names_the_linears_that_are_pruned(model, tokens):
    found = layout.describe(json.loads((model / "config.json").read_text()))
    entered, _ = hidden_states(model, tokens)
    assert len(found["blocks"]) == len(entered) == 3
    with safe_open(sorted(model.glob("*.safetensors"))[0], "pt") as file:
        assert file.keys()
    blocks, _ = open_blocks(model)
    for index, block in enumerate(found["blocks"]):
        parameters = dict(blocks[index].named_parameters())
        for name, linear in block["linears"].items():
            shape = parameters[name if name in parameters else f"{name}.weight"].shape
            assert shape.numel() == linear["rows"] * linear["columns"] * linear.get("experts", 1)
            assert {linear["rows"], linear["columns"]} == {*shape[-2:]} or (linear.get("experts") and shape[1:])


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.parametrize(
    "run",
    [
        {"sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "pruned", "target": "dense"},
        {"sparsity": "2:4", "mask": "admm", "update": "joint", "propagation": "dense"},
    ],
    ids=["aimed chain", "apart"],
)
def test_pruned_in_stages_reloaded_equals_pruned_in_memory(model, tokens, run, tmp_path):
    prune_in_stages(model, tokens, run, tmp_path)
    expected = prune_in_memory(model, tokens, run, batch_size=2)
    found = load(tmp_path / "checkpoint")
    state = expected.state_dict()
    for key, value in found.state_dict().items():
        assert torch.equal(value, state[key]), key
    with torch.no_grad():
        assert torch.equal(found(input_ids=tokens).logits, expected(input_ids=tokens).logits)


def prune_in_stages(folder, tokens, run, work, device="cpu"):
    """The stages one after another, without Snakemake."""
    manifest = work / "model.json"
    fetch_model(manifest, "", {"kind": "folder", "source": str(folder), "revision": None}, "code")
    fingerprint = json.loads(manifest.read_text())["fingerprint"]
    written = artifacts.provenance("calibrate", {}, "code", {}, model=fingerprint)
    artifacts.write(work / "tokens", {"tokens": tokens}, written)
    recipe = Run.model_validate(run)
    described = layout.describe(json.loads((folder / "config.json").read_text()))
    common = {"model": manifest, "tokens": work / "tokens", "labels": {}, "code": "code", "device": device}
    common["metrics"] = work / "metrics.json"

    seen = {"dtype": None, "accumulate": "float32", "experts": "routed", "min_tokens": 1}

    def captured(trail, block, before, weights, dense):
        at = {name: work / f"{trail}_{block}_{name}" for name in ("inputs", "gram")}
        capture(
            before=before,
            weights=weights,
            dense=dense,
            inputs=at["inputs"],
            grams=at["gram"],
            trail=trail,
            block=block,
            settings={**seen, **pipeline.watched(described, trail, block, [])},
            owners=[pruned[each] for each in pipeline.owners_of(described, block - 1, [])] if trail == "run" else [],
            batch_size=2,
            room=2**30,
            **common,
        )
        return at

    pruned, at, dense, count = [], {"inputs": None}, [{"inputs": None}], len(described["blocks"])
    for block in range(count):
        dense.append(captured("dense", block, dense[-1]["inputs"], None, None))
    del dense[0]
    for block in range(count):
        before, here, trail = at["inputs"], recipe, "run"
        at = dense[block]
        if run["propagation"] == "pruned" and block > 0:
            at = captured("run", block, before, pruned[-1], dense[block]["inputs"])
        else:
            here, trail = recipe.at(block, count, (), dense_inputs=True), "dense"
        made = {"grams": at["gram"], "trail": trail, "block": block}
        made["shared"] = [dense[each]["gram"] for each in pipeline.summed_over(described, block, [])]
        mask, weights = None, work / f"{block}_weights"
        if not recipe.joint:
            mask = work / f"{block}_mask"
            mask_block(mask=None, output=mask, settings=here.mask_settings, **made, **common)
        if recipe.updated:
            update_block(mask=mask, output=weights, settings=here.update_settings, **made, **common)
        last = weights if recipe.updated else mask
        if recipe.reconstructed:
            reconstruct_block(
                inputs=at["inputs"],
                dense=dense[block]["inputs"] if recipe.follows_dense else None,
                weights=last,
                output=(last := work / f"{block}_reconstructed"),
                block=block,
                settings=recipe.reconstruct_settings,
                owners=[pruned[each] for each in pipeline.owners_of(described, block, [])],
                batch_size=2,
                **common,
            )
        pruned.append(last)
    settings = {"run": recipe.model_dump(), "patterns": [recipe.pattern_settings] * count}
    assemble(manifest, pruned, work / "checkpoint", settings, "code")


def test_a_checkpoint_without_the_base_models_name_in_its_keys_is_read(tmp_path, tokens):
    """As published for GPT-2 and BLOOM: `h.0.attn…` in the file, `transformer.h.0.attn…` in the model."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config("gpt2")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    entered, left = hidden_states(tmp_path, tokens)
    blocks, _ = open_blocks(tmp_path)
    with blocks.loaded(2):
        assert torch.equal(blocks.forward(tokens, {HIDDEN: entered[2]})[1][HIDDEN], left[2])
