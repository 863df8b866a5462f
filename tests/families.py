"""Tiny random models of every family that we promise to prune, by config alone."""

TEXT = dict(vocab_size=160, max_position_embeddings=64, tie_word_embeddings=False)
WIDE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, **TEXT)
GROUPED = dict(num_key_value_heads=2, head_dim=8, **WIDE)

CONFIGS = {
    "llama": dict(model_type="llama", num_key_value_heads=2, **WIDE),
    "gemma2": dict(model_type="gemma2", sliding_window=8, **{**GROUPED, "tie_word_embeddings": True}),
    "gemma3": dict(
        model_type="gemma3_text", sliding_window=8, sliding_window_pattern=2, **{**GROUPED, "tie_word_embeddings": True}
    ),
    "qwen3": dict(model_type="qwen3", **GROUPED),
    "opt": dict(
        model_type="opt", ffn_dim=48, word_embed_proj_dim=32, **{**WIDE, "tie_word_embeddings": True}, pad_token_id=1
    ),
    "gpt2": dict(
        model_type="gpt2", n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=160, tie_word_embeddings=True
    ),
    "gpt_neox": dict(model_type="gpt_neox", **WIDE),
    "phi": dict(model_type="phi", num_key_value_heads=2, **WIDE),
    "falcon": dict(
        model_type="falcon", hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=160, alibi=True,
        new_decoder_architecture=False, tie_word_embeddings=True,
    ),
    "bloom": dict(model_type="bloom", hidden_size=32, n_layer=3, n_head=4, vocab_size=160, tie_word_embeddings=True),
    "mamba": dict(
        model_type="mamba", hidden_size=32, num_hidden_layers=3, state_size=8, vocab_size=160, time_step_rank=4
    ),
    "mamba2": dict(
        model_type="mamba2", hidden_size=32, num_hidden_layers=3, state_size=8, vocab_size=160, num_heads=8,
        head_dim=8, expand=2, n_groups=2, chunk_size=16,
    ),
    "zamba": dict(
        model_type="zamba", layers_block_type=["hybrid", "mamba", "hybrid"], mamba_d_state=8, mamba_dt_rank=4,
        n_mamba_heads=2, attention_hidden_size=64, attention_head_dim=16, num_key_value_heads=4,
        use_mamba_kernels=False, **{**WIDE, "tie_word_embeddings": True},
    ),
    "zamba2": dict(
        model_type="zamba2", layers_block_type=["hybrid"] * 3, num_mem_blocks=2, use_shared_attention_adapter=True,
        adapter_rank=4, mamba_d_state=8, mamba_ngroups=1, n_mamba_heads=2, mamba_headdim=32, chunk_size=16,
        attention_head_dim=16, num_key_value_heads=4, **{**WIDE, "tie_word_embeddings": True},
    ),
    "gemma3_multimodal": dict(
        model_type="gemma3",
        text_config=dict(model_type="gemma3_text", sliding_window=8, **{**GROUPED, "tie_word_embeddings": True}),
        vision_config=dict(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14,
        ),
        mm_tokens_per_image=4,
    ),
    "mixtral": dict(
        model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2, **WIDE
    ),
    "qwen2_moe": dict(
        model_type="qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=2,
        shared_expert_intermediate_size=16, num_key_value_heads=2, **WIDE,
    ),
    "gpt_oss": dict(
        model_type="gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=8, **GROUPED,
    ),
    "llama4": dict(
        model_type="llama4_text", num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=48,
        interleave_moe_layer_step=1, attention_chunk_size=16, **GROUPED,
    ),
}  # fmt: skip


def config(name: str, **changes):
    """The transformers config of a family."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{**CONFIGS[name], "bos_token_id": 0, "eos_token_id": 0, **changes})
