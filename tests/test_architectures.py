"""Every causal language model that the installed transformers has, tiny: it works to the bit, or is refused by name."""

import json
import sys
from functools import partial

import pytest
import torch
from conftest import SHARED
from problems import assert_sentence

from gramprune import GrampruneError
from gramprune.model import layout, places
from gramprune.model.blocks import HIDDEN, open_blocks
from gramprune.model.loading import model_class, parse_config
from gramprune.model.products import Products, name_of, rows_of_part

FAMILIES = SHARED / "tools/families"
pytestmark = pytest.mark.skipif(not FAMILIES.exists(), reason="no configs of tiny models at ../shared/tools/families")
REFUSED = {
    "a later token changes": [
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
        "paligemma", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
        "xlm-roberta-xl", "xlnet",
    ],
    "cannot be executed by itself": [
        "cpmant", "hy_v4", "prophetnet", "reformer",
    ],
    "decoder blocks": ["hrm_text", "xlm"],
    "has no part in what the model makes of text alone": ["mllama"],
    "not of a causal language model": ["blt", "t5gemma2", "xmod"],
    "takes more from the block before it": ["zaya"],
}  # fmt: skip
"""Types that cannot be pruned yet, by what is said of them; the table may only shrink."""
UNMADE = {
    "cohere_compass_text", "dots3_note", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "musicgen",
    "musicgen_melody",
}  # fmt: skip
"""Types of which transformers cannot make a tiny model, or needs a package for images; nothing is known of them."""
ROTARY = {"rope_type": "default", "rope_theta": 1e4}
SECTIONS = {"qwen2_vl": [2, 3, 3], "qwen2_5_vl": [2, 3, 3], "glm4v": [2, 3, 3], "glm46v": [2, 3, 3]}
SECTIONS["glm4v_moe"] = [1, 1, 2]
SMALLER = {name: {"text_config": {"rope_parameters": {**ROTARY, "mrope_section": s}}} for name, s in SECTIONS.items()}
SMALLER |= {
    "step3p7": {"text_config": {"sliding_window": 8}},
    "emu3": {"vocabulary_map": {"<image>": 200}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**ROTARY, "mrope_section": [3, 3, 2]}}},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 1], [1, 2]], "spatial_target_layers": [1, 3], "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
}  # fmt: skip
"""What the tiny configs lack for transformers to execute them."""


def types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not FAMILIES.exists():
        return ["all"]
    sys.path.insert(0, str(FAMILIES))
    import sweep
    import tiny

    for name, more in SMALLER.items():
        tiny.VARIANTS[name] = tiny.merged(tiny.VARIANTS.get(name, {}), more)
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *sweep.MULTIMODAL} - UNMADE)


@pytest.mark.slow
@pytest.mark.parametrize("name", types())
def test_a_type_works_to_the_bit_or_is_refused_while_planning(name, tmp_path):
    with torch.random.fork_rng():
        made(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if refused := [words for words, names in REFUSED.items() if name in names]:
        with pytest.raises(GrampruneError) as caught:
            layout.describe(config)
        assert_sentence(caught, "model", *refused)
        return
    found = layout.describe(config)
    whole = model_class(parse_config(tmp_path)).from_pretrained(
        tmp_path, experts_implementation="eager", dtype=torch.float32
    )
    whole.eval()
    for parameter in whole.parameters():
        parameter.data = parameter.data.clone()  # where it lies in memory decides on the order of sums
    of_blocks = sum(map(layout.parameters_of, found["blocks"]))
    assert found["outside"] + found["head"] + of_blocks == sum(p.numel() for p in whole.parameters())
    blocks, keys = open_blocks(tmp_path, "float32")
    modules = dict(whole.named_modules())
    real = [modules[f"{blocks.prefix}.{index}"] for index in range(len(blocks))]
    entered, left = observed(whole, real, tokens := torch.randint(3, 150, (5, 16)))
    flow = None
    for index, described in enumerate(found["blocks"]):
        linears = {*described["linears"], *described["shared"]}
        with blocks.loaded(index) as block, Products(block, linears.__contains__) as seen:
            first, flow = blocks.forward(tokens, flow)
        assert torch.equal(first[HIDDEN], moved(blocks, entered[index])), f"what enters block {index}"
        assert torch.equal(flow[HIDDEN], moved(blocks, left[index])), f"what leaves block {index}"
        assert {name_of(matrix.parameter) for matrix in seen.matrices.values()} == linears
        parameters = dict(real[index].named_parameters())
        for matrix in seen.matrices.values():
            place, turned = keys.place(f"{blocks.prefix}.{index}.{matrix.parameter}", matrix.part, matrix.parts)
            stored = places.read(place, keys.weights)
            used = rows_of_part(parameters[matrix.parameter], matrix.part, matrix.parts)
            assert torch.equal(stored.T if turned else stored, used), matrix
        accounted = sum(map(layout.weights_of, described["linears"].values())) + sum(described["dense"].values())
        own = [p for n, p in parameters.items() if p.ndim > 1 and name_of(n) not in described["repeated"]]
        assert accounted == sum(p.numel() for p in own), "pruned, or named as dense"


def made(name, folder):
    """A random model in a folder, as the hub has them."""
    import sweep
    import tiny

    config = tiny.tiny(name)
    torch.manual_seed(0)
    model = model_class(config)._from_config(config).float()
    sweep.noise(model)
    model.save_pretrained(folder, max_shard_size="300KB")


def observed(whole, blocks, tokens):
    """What enters and leaves every block of the whole model."""
    entered, left = {}, {}

    def note(module, args, kwargs, output, index):
        entered[index] = (args[0] if args else kwargs["hidden_states"]).clone()
        left[index] = (output[0] if isinstance(output, tuple | list) else output).clone()

    for index, block in enumerate(blocks):
        block.register_forward_hook(partial(note, index=index), with_kwargs=True)
    with torch.no_grad():
        whole(input_ids=tokens, use_cache=False)
    return entered, left


def moved(blocks, hidden):
    """Hidden states of the whole model as blocks have them: sequences, tokens, features."""
    batch = next(d for d, size in enumerate(hidden.shape) if size == 5)
    return hidden.movedim((batch, batch + 1), (0, 1))
