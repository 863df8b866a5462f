"""The parts of a model: its list of blocks, what feeds them, and what makes logits of what they give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from gramprune.errors import GrampruneError
from gramprune.model.products import Enough


def decoder_of(whole: PreTrainedModel) -> nn.Module:
    """What feeds the blocks of a model, without a head, and without what makes something of images or sounds."""
    nested = whole.config.get_text_config() is not whole.config  # a language model with others around it
    return whole.get_decoder() if nested else whole.base_model


def trunk_of(whole: PreTrainedModel) -> nn.Module:
    """The module that has the list of blocks: of what it gives the rest of the model makes logits, token by token."""
    decoder = decoder_of(whole)
    path, _ = find_blocks(decoder, whole.config)
    return decoder.get_submodule(path.rpartition(".")[0])


def given_by(trunk: nn.Module, work: Callable[[], Any]) -> Tensor:
    """The hidden states (batch, length, width) that a module gives while something works, which stops there."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        found.append(output[0])
        raise Enough

    hook = trunk.register_forward_hook(note)
    try:
        with suppress(Enough):
            work()
    finally:
        hook.remove()
    return found[-1]  # the first may be of a pass that only learns what blocks return


def through_head(whole: PreTrainedModel, trunk: nn.Module, states: Tensor) -> Tensor:
    """Logits (positions, vocabulary) of what the trunk gives (positions, width), as the model itself makes them."""
    own = vars(trunk).get("forward")  # as of a model that lies on several devices
    trunk.forward = lambda *args, **kwargs: _Given(last_hidden_state=states[None])
    try:
        tokens = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        return whole(input_ids=tokens, use_cache=False).logits[0]
    finally:
        del trunk.forward
        if own is not None:
            trunk.forward = own


class _Given(BaseModelOutput):
    """What a trunk gives, of any family: hidden states, and nothing else that is asked for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def find_blocks(model: nn.Module, config: PreTrainedConfig) -> tuple[str, nn.ModuleList]:
    """The outermost ModuleList that is as long as the config says, or the only one of any length, and its name."""
    count = config.get_text_config().num_hidden_layers
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    for found in ({n: m for n, m in lists.items() if len(m) == count}, lists):
        outermost = [n for n in found if not any(n != other and n.startswith(f"{other}.") for other in found)]
        if len(outermost) == 1:
            return outermost[0], found[outermost[0]]
    raise GrampruneError(
        f"model type {config.model_type}: expected one list of {count} decoder blocks (num_hidden_layers), found "
        f"{outermost or 'none'}; this architecture is not supported."
    )


def token_embedding(model: nn.Module) -> nn.Embedding | None:
    """What makes hidden states of tokens, where that is a plain table of its own."""
    with suppress(Exception):  # some families have none, or say so by an error of one kind or another
        decoder: Any = model
        found = decoder.get_input_embeddings()
        alike = [each for _, each in model.named_parameters(remove_duplicate=False) if each is found.weight]
        return found if isinstance(found, nn.Embedding) and len(alike) == 1 and found.weight.is_meta else None
    return None
