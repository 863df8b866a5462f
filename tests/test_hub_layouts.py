"""Checkpoints as the hub has them: the published names and shapes, written down here, survive a pruning as they are.

Tiny models, their tensors renamed, split and turned by the tables below, which follow published indexes and know
nothing of transformers' own rules for the same. A line of a table is a tensor of the hub, and behind `<` the parameter
of the model that it holds, where that has another name or more in it; `#` is a layer's number, `@` an expert's.
"""

import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_families import prune_in_stages
from transformers.pytorch_utils import Conv1D

from gramprune.model import folder as folders
from gramprune.model import inspect, layout

TEXT = dict(vocab_size=320, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=None)
WIDE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **TEXT)
GROUPED = dict(num_key_value_heads=2, head_dim=8, **WIDE)
ROUTED = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
SHARING = dict(
    n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, moe_intermediate_size=24,
    first_k_dense_replace=1,
)  # fmt: skip
LATENT = dict(q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8)
MAMBA = dict(mamba_d_state=8, mamba_expand=2)
SEEING = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
LOOKING = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=14, out_hidden_size=32)


def rotary(*sections):
    return dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[*sections]))


CONFIGS = {
    "MixtralForCausalLM": dict(model_type="mixtral", **ROUTED, **GROUPED),
    "Qwen3MoeForCausalLM": dict(model_type="qwen3_moe", **ROUTED, **GROUPED),
    "GptOssForCausalLM": dict(model_type="gpt_oss", sliding_window=8, **ROUTED, **GROUPED),
    "DeepseekV3ForCausalLM": dict(model_type="deepseek_v3", num_key_value_heads=4, **LATENT, **SHARING, **WIDE),
    "Glm4MoeForCausalLM": dict(model_type="glm4_moe", attention_bias=True, **SHARING, **GROUPED),
    "OlmoeForCausalLM": dict(model_type="olmoe", num_key_value_heads=4, **ROUTED, **WIDE),
    "PhimoeForCausalLM": dict(
        model_type="phimoe", num_key_value_heads=2, attention_bias=True, lm_head_bias=True, **ROUTED, **WIDE
    ),
    "DbrxForCausalLM": dict(
        model_type="dbrx", d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=320,
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
        ffn_config=dict(ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2, hidden_size=32),
    ),
    "JambaForCausalLM": dict(
        model_type="jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        mamba_dt_rank=4, use_mamba_kernels=False, num_key_value_heads=2, **MAMBA, **ROUTED, **WIDE,
    ),
    "Zamba2ForCausalLM": dict(
        model_type="zamba2", tie_word_embeddings=True, num_mem_blocks=1, layers_block_type=["hybrid", "hybrid"],
        mamba_ngroups=1, n_mamba_heads=2, mamba_headdim=32, use_shared_attention_adapter=True, attention_head_dim=16,
        adapter_rank=4, num_key_value_heads=4, chunk_size=16, **MAMBA, **WIDE,
    ),
    "FalconForCausalLM": dict(
        model_type="falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True, alibi=False,
        parallel_attn=True, bias=False, new_decoder_architecture=False, tie_word_embeddings=False, vocab_size=320,
    ),
    "GPT2LMHeadModel": dict(model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=320),
    "MambaForCausalLM": dict(
        model_type="mamba", hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=320, time_step_rank=4
    ),
    "Gemma3ForConditionalGeneration": dict(
        model_type="gemma3", text_config=dict(sliding_window=8, **GROUPED), vision_config=SEEING, mm_tokens_per_image=4
    ),
    "Mistral3ForConditionalGeneration": dict(
        model_type="mistral3", text_config=dict(model_type="mistral", **GROUPED),
        vision_config=dict(model_type="pixtral", head_dim=8, **SEEING),
    ),
    "Llama4ForConditionalGeneration": dict(
        model_type="llama4",
        text_config=dict(
            num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=40, interleave_moe_layer_step=1,
            attention_chunk_size=16, **GROUPED,
        ),
        vision_config=dict(vision_output_dim=16, projector_input_dim=16, projector_output_dim=16, **SEEING),
    ),
    "Qwen2_5_VLForConditionalGeneration": dict(
        model_type="qwen2_5_vl", text_config=dict(num_key_value_heads=2, **rotary(1, 1, 2), **WIDE),
        vision_config=dict(fullatt_block_indexes=[0], **LOOKING),
    ),
    "Qwen3VLMoeForConditionalGeneration": dict(
        model_type="qwen3_vl_moe", text_config=dict(**rotary(2, 1, 1), **ROUTED, **GROUPED),
        vision_config=dict(deepstack_visual_indexes=[0], num_position_embeddings=16, **LOOKING),
    ),
    "Qwen3_5MoeForConditionalGeneration": dict(
        model_type="qwen3_5_moe",
        text_config=dict(
            layer_types=["linear_attention", "full_attention"], shared_expert_intermediate_size=24,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
            **rotary(2, 1, 1), **ROUTED, **GROUPED,
        ),
        vision_config=dict(num_position_embeddings=16, **LOOKING),
    ),
}  # fmt: skip


def under(hub, model, *lines):
    """Lines of tensors whose names begin in one way on the hub, in another in the model."""
    pairs = [line.partition(" < ") for line in lines]
    return [f"{hub}{left} < {model}{right or left}" for left, _, right in pairs]


def expert(gate, up, down, place="mlp.experts"):
    """A line for each of an expert's matrices, of which the model has the first two in one."""
    return [f"{gate} < {place}.gate_up_proj top", f"{up} < {place}.gate_up_proj bottom", f"{down} < {place}.down_proj"]


ATTENTION = [f"self_attn.{each}_proj.weight" for each in "qkvo"]
BIASES = [f"self_attn.{each}_proj.bias" for each in "qkv"]
NORMALISED = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
MLP = [f"mlp.{each}_proj.weight" for each in ("gate", "up", "down")]
LAYER, OUTSIDE = "model.layers.#.", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
NAMED = expert(*(f"mlp.experts.@.{each}_proj.weight" for each in ("gate", "up", "down")))
NUMBERED = expert(*(f"block_sparse_moe.experts.@.{each}.weight" for each in ("w1", "w3", "w2")))
SHARED = [f"mlp.shared_experts.{each}_proj.weight" for each in ("gate", "up", "down")]
SCORED = ["mlp.gate.weight", "mlp.gate.e_score_correction_bias"]
LATENT_ATTENTION = [
    "q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight", "kv_a_proj_with_mqa.weight", "kv_a_layernorm.weight",
    "kv_b_proj.weight", "o_proj.weight",
]  # fmt: skip
MIXER = [
    "A_log", "D", "conv1d.weight", "conv1d.bias", "in_proj.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias",
    "out_proj.weight",
]  # fmt: skip

HUB = {
    "MixtralForCausalLM": [  # mistralai/Mixtral-8x7B-v0.1
        *OUTSIDE, *under(LAYER, LAYER, *ATTENTION, *NORMS, "block_sparse_moe.gate.weight < mlp.gate.weight", *NUMBERED),
    ],
    "Qwen3MoeForCausalLM": [  # Qwen/Qwen3-30B-A3B
        *OUTSIDE, *under(LAYER, LAYER, *ATTENTION, *NORMALISED, *NORMS, "mlp.gate.weight", *NAMED),
    ],
    "GptOssForCausalLM": [  # openai/gpt-oss-20b in bfloat16
        *OUTSIDE,
        *under(
            LAYER, LAYER, *ATTENTION, *BIASES, "self_attn.o_proj.bias", "self_attn.sinks", *NORMS, "mlp.router.weight",
            "mlp.router.bias", "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj",
            "mlp.experts.down_proj_bias",
        ),
    ],
    "DeepseekV3ForCausalLM": [  # deepseek-ai/DeepSeek-V3 in bfloat16
        *OUTSIDE,
        *under(f"{LAYER}self_attn.", f"{LAYER}self_attn.", *LATENT_ATTENTION),
        *under(LAYER, LAYER, *NORMS, *MLP, *SCORED, *SHARED, *NAMED),
    ],
    "Glm4MoeForCausalLM": [  # zai-org/GLM-4.5-Air
        *OUTSIDE, *under(LAYER, LAYER, *ATTENTION, *BIASES, *NORMS, *MLP, *SCORED, *SHARED, *NAMED),
    ],
    "OlmoeForCausalLM": [  # allenai/OLMoE-1B-7B-0924
        *OUTSIDE, *under(LAYER, LAYER, *ATTENTION, *NORMALISED, *NORMS, "mlp.gate.weight", *NAMED),
    ],
    "PhimoeForCausalLM": [  # microsoft/Phi-3.5-MoE-instruct
        *OUTSIDE, "model.norm.bias", "lm_head.bias",
        *under(
            LAYER, LAYER, *ATTENTION, *BIASES, "self_attn.o_proj.bias", *NORMS, "input_layernorm.bias",
            "post_attention_layernorm.bias", "block_sparse_moe.gate.weight < mlp.router.weight", *NUMBERED,
        ),
    ],
    "DbrxForCausalLM": [  # databricks/dbrx-base
        "transformer.wte.weight", "transformer.norm_f.weight", "lm_head.weight",
        *under(
            "transformer.blocks.#.", "transformer.blocks.#.", "norm_attn_norm.norm_1.weight",
            "norm_attn_norm.norm_2.weight", "norm_attn_norm.attn.Wqkv.weight", "norm_attn_norm.attn.out_proj.weight",
            "ffn.router.layer.weight", "ffn.experts.mlp.w1", "ffn.experts.mlp.v1", "ffn.experts.mlp.w2",
        ),
    ],
    "JambaForCausalLM": [  # ai21labs/Jamba-v0.1
        "model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight",
        *under(
            LAYER, LAYER, *ATTENTION, "input_layernorm.weight", "pre_ff_layernorm.weight",
            *(f"mamba.{each}" for each in MIXER), *(f"mamba.{each}_layernorm.weight" for each in ("dt", "b", "c")),
            *(f"feed_forward.{each}_proj.weight" for each in ("gate", "up", "down")), "feed_forward.router.weight",
            *expert(
                *(f"feed_forward.experts.@.{each}_proj.weight" for each in ("gate", "up", "down")),
                "feed_forward.experts",
            ),
        ),
    ],
    "Zamba2ForCausalLM": [  # Zyphra/Zamba2-1.2B: what several layers share, only in the first of them
        "model.embed_tokens.weight", "model.final_layernorm.weight",
        *under(
            LAYER, LAYER, "linear.weight", "mamba_decoder.input_layernorm.weight",
            *(f"mamba_decoder.mamba.{each}" for each in ("A_log", "D", "dt_bias", "norm.weight", "in_proj.weight")),
            *(f"mamba_decoder.mamba.{each}" for each in ("conv1d.weight", "conv1d.bias", "out_proj.weight")),
            *(f"shared_transformer.{each}" for each in ATTENTION), "shared_transformer.input_layernorm.weight",
            "shared_transformer.pre_ff_layernorm.weight", "shared_transformer.feed_forward.gate_up_proj.weight",
            "shared_transformer.feed_forward.down_proj.weight",
            *(
                f"shared_transformer.{adapted}_adapter_list.{one}.{two}.weight" for one in "01" for two in "01"
                for adapted in ("feed_forward.gate_up_proj", *(f"self_attn.linear_{each}" for each in "qkv"))
            ),
        ),
    ],
    "FalconForCausalLM": [  # tiiuae/falcon-7b
        "transformer.word_embeddings.weight", "transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight",
        *under(
            "transformer.h.#.", "transformer.h.#.", "input_layernorm.weight", "input_layernorm.bias",
            "self_attention.query_key_value.weight", "self_attention.dense.weight", "mlp.dense_h_to_4h.weight",
            "mlp.dense_4h_to_h.weight",
        ),
    ],
    "GPT2LMHeadModel": [  # openai-community/gpt2
        *under("", "transformer.", "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"),
        *under(
            "h.#.", "transformer.h.#.",
            *(
                f"{module}.{each}" for each in ("weight", "bias")
                for module in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
            ),
        ),
    ],
    "MambaForCausalLM": [  # state-spaces/mamba-130m-hf
        "backbone.embeddings.weight", "backbone.norm_f.weight",
        *under("backbone.layers.#.", "backbone.layers.#.", "norm.weight", *(f"mixer.{each}" for each in MIXER)),
    ],
    "Gemma3ForConditionalGeneration": [  # google/gemma-3-4b-it
        *under("language_model.model.", "model.language_model.", "embed_tokens.weight", "norm.weight"),
        *under(
            "language_model.model.layers.#.", "model.language_model.layers.#.", *ATTENTION, *NORMALISED, *NORMS, *MLP,
            "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight",
        ),
        "vision_tower.vision_model.* < model.vision_tower.*",
        *under(
            "multi_modal_projector.", "model.multi_modal_projector.", "mm_input_projection_weight",
            "mm_soft_emb_norm.weight",
        ),
    ],
    "Mistral3ForConditionalGeneration": [  # mistralai/Mistral-Small-3.1-24B-Instruct-2503
        *under("language_model.model.", "model.language_model.", "embed_tokens.weight", "norm.weight"),
        *under("language_model.model.layers.#.", "model.language_model.layers.#.", *ATTENTION, *NORMS, *MLP),
        "language_model.lm_head.weight < lm_head.weight",
        "vision_tower.* < model.vision_tower.*",
        *under(
            "multi_modal_projector.", "model.multi_modal_projector.", "norm.weight",
            "patch_merger.merging_layer.weight", "linear_1.weight", "linear_2.weight",
        ),
    ],
    "Llama4ForConditionalGeneration": [  # meta-llama/Llama-4-Scout-17B-16E
        *under("language_model.", "language_model.", *OUTSIDE),
        *under(
            f"language_model.{LAYER}", f"language_model.{LAYER}", *ATTENTION, *NORMS, "feed_forward.router.weight",
            "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj",
            *(f"feed_forward.shared_expert.{each}_proj.weight" for each in ("gate", "up", "down")),
        ),
        "vision_model.* < vision_model.*", "multi_modal_projector.linear_1.weight",
    ],
    "Qwen2_5_VLForConditionalGeneration": [  # Qwen/Qwen2.5-VL-7B-Instruct
        *under("model.", "model.language_model.", "embed_tokens.weight", "norm.weight"), "lm_head.weight",
        *under(LAYER, "model.language_model.layers.#.", *ATTENTION, *BIASES, *NORMS, *MLP),
        "visual.* < model.visual.*",
    ],
    "Qwen3VLMoeForConditionalGeneration": [  # Qwen/Qwen3-VL-30B-A3B-Instruct
        *under("model.language_model.", "model.language_model.", "embed_tokens.weight", "norm.weight"),
        *under(
            "model.language_model.layers.#.", "model.language_model.layers.#.", *ATTENTION, *NORMALISED, *NORMS,
            "mlp.gate.weight", "mlp.experts.gate_up_proj < mlp.experts.gate_up_proj turned",
            "mlp.experts.down_proj < mlp.experts.down_proj turned",
        ),
        "lm_head.weight", "model.visual.* < model.visual.*",
    ],
    "Qwen3_5MoeForConditionalGeneration": [  # Qwen/Qwen3.5-35B-A3B
        *under("model.language_model.", "model.language_model.", "embed_tokens.weight", "norm.weight"),
        *under(
            "model.language_model.layers.#.", "model.language_model.layers.#.", *ATTENTION, *NORMALISED, *NORMS,
            *(f"linear_attn.in_proj_{each}.weight" for each in ("qkv", "z", "b", "a")), "linear_attn.conv1d.weight",
            "linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.norm.weight", "linear_attn.out_proj.weight",
            *(f"mlp.shared_expert.{each}_proj.weight" for each in ("gate", "up", "down")), "mlp.gate.weight",
            "mlp.shared_expert_gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
        ),
        "lm_head.weight", "model.visual.* < model.visual.*",
    ],
}  # fmt: skip

MORE = {
    "DeepseekV3ForCausalLM": ["model.layers.2.eh_proj.weight", "model.layers.2.mlp.experts.0.gate_proj.weight"],
    "Glm4MoeForCausalLM": ["model.layers.2.eh_proj.weight", "model.layers.2.shared_head.norm.weight"],
    "GPT2LMHeadModel": ["h.0.attn.bias", "h.1.attn.bias"],
    "Qwen3_5MoeForConditionalGeneration": ["mtp.fc.weight", "mtp.layers.0.mlp.experts.gate_up_proj"],
}
"""What else the published files hold, which transformers passes over: a layer that guesses ahead, masks."""

HOW = {
    "": lambda value: value,
    "top": lambda value: value.chunk(2)[0],
    "bottom": lambda value: value.chunk(2)[1],
    "turned": lambda value: value.mT,
}


def stored(lines, state):
    """A model's parameters as a checkpoint of the hub holds them; every one must be in the table."""
    found, met = {}, set()
    for line in lines:
        hub, _, other = line.partition(" < ")
        model, _, how = (other or hub).partition(" ")
        pattern = re.escape(model).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        for name, value in state.items():
            if at := re.fullmatch(pattern, name):
                met.add(name)
                key = re.sub(r"[#*]", lambda _, at=at: at[1], hub)
                parts = {key.replace("@", str(e)): each for e, each in enumerate(value)} if "@" in hub else {key: value}
                found |= {key: HOW[how](each).contiguous() for key, each in parts.items()}
    assert met == set(state)
    return found


def halved(model, state, described):
    """The parameters where the smaller half of every row of every linear is zero; all others as they are."""
    new = dict(state)
    for index, block in enumerate(described["blocks"]):
        for name, linear in block["linears"].items():
            module = f"{described['prefix']}.{index}.{name}"
            name = model.all_tied_weights_keys.get(f"{module}.weight", f"{module}.weight")
            name = name if name in state else module
            turned = name != module and isinstance(model.get_submodule(module), Conv1D)
            along = -2 if turned or state[name].shape[-1] != linear["columns"] else -1
            parts = state[name].reshape(linear.get("experts", 1), -1, state[name].shape[-1])
            rank = parts.abs().argsort(along).argsort(along)
            new[name] = parts.where(rank >= linear["columns"] // 2, 0).reshape(state[name].shape)
    return new


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HUB)
def test_a_checkpoint_of_the_hub_keeps_its_names_and_all_that_is_not_pruned(architecture, tokenizer, tmp_path):
    torch.manual_seed(0)
    cls, about = getattr(transformers, architecture), CONFIGS[architecture]
    model = cls(transformers.AutoConfig.for_model(**about))
    own = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}
    state = {name: torch.randn_like(value) * 0.1 for name, value in own.items()}
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    model.config.architectures = [architecture]
    model.config.save_pretrained(folder)
    extra = {key: torch.randn(4, 4) for key in MORE.get(architecture, [])}
    save_file({**stored(HUB[architecture], state), **extra}, folder / "model.safetensors", {"format": "pt"})
    assert_loads(cls, folder, state, extra)

    described = layout.describe(folders.read_config(folder))
    inspect.check(folder, described)
    expected = halved(model, state, described)
    run = {"sparsity": 0.5, "mask": "magnitude", "propagation": "dense"}
    prune_in_stages(folder, torch.randint(0, 300, (2, 8)), run, tmp_path)
    written = load_file(tmp_path / "checkpoint/model.safetensors")
    wanted = {**stored(HUB[architecture], expected), **extra}
    assert written.keys() == wanted.keys()
    assert not [key for key, value in wanted.items() if not torch.equal(written[key], value)]
    assert_loads(cls, tmp_path / "checkpoint", expected, extra)


def assert_loads(cls, folder, state, extra):
    """transformers finds every parameter with the values that are meant, and passes over nothing but `extra`."""
    model, told = cls.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not told["missing_keys"] and not told["mismatched_keys"] and (extra or not told["unexpected_keys"])
    found = model.state_dict()
    assert not [name for name, value in state.items() if not torch.equal(found[name], value)]
