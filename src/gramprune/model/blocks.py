"""A model as a sequence of decoder blocks, of which one at a time is in memory; no family has code of its own.

The model is built from its config with parameters on the meta device. Only what stands outside the blocks
(embeddings, norms) and one block get real values. The model's *own* forward then prepares masks, rotary embeddings,
sliding windows and whatever a family needs; pass-through stubs stand in the place of all other blocks, and the stored
hidden states are put in front of the one real block. So its outputs are bit-identical to the full model's, on
one machine with as many threads and weights that lie alike in memory; elsewhere they differ in the last places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gramprune.errors import GrampruneError
from gramprune.model.keys import Keys
from gramprune.model.loading import compute_dtype, empty_model, parse_config
from gramprune.model.weights import Weights

Source = Callable[[str, Tensor], Tensor | None]
"""(name in the model, the tensor without values) -> its values on the CPU, None where there are none."""


class Blocks:
    """A model without weights, and the means to execute one of its blocks.

    whole: as `empty_model` makes it. source: where values come from.
    Raises GrampruneError if the blocks cannot be found or share parameters.
    """

    def __init__(self, whole: PreTrainedModel, source: Source, device: str = "cpu"):
        config = whole.config
        nested = config.get_text_config() is not config  # a language model with others around it
        self.model = whole.get_decoder() if nested else whole.base_model  # what feeds the blocks; no head is needed
        prefix = next(name for name, module in whole.named_modules() if module is self.model)
        path, self._list = _find_blocks(self.model, config)
        self.prefix = f"{prefix}.{path}" if prefix else path
        """Name of the list of blocks in the model: the parameters of block 3 start with `{prefix}.3.`"""
        self.dtype, self.device, self._source = whole.dtype, device, source
        self._blocks = list(self._list)
        _refuse_shared(whole, self.prefix)
        base, inside = _parameters(self.model), _parameters(self._list)
        tied = getattr(whole, "all_tied_weights_keys", {})  # each is another parameter, once more
        everything = sum(parameter.numel() for name, parameter in whole.named_parameters() if name not in tied)
        self.width: int = config.get_text_config().hidden_size
        self.sizes = {"outside": base - inside, "head": everything - base}
        """Numbers of parameters that are in no block; `head` is all that does not feed the blocks and is not tied."""
        self._members: int | None = None  # of what a block returns: 0 for a tensor, else the tuple's length
        self._loaded: nn.Module | None = None
        for index, block in enumerate(self._blocks):
            self._list[index] = _Skip(block, self)
        self._fill(self.model, f"{prefix}." if prefix else "")  # what is left now stands outside the blocks
        self.model.to(device)

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> nn.Module:
        """A block, without values unless it is loaded."""
        return self._blocks[index]

    @contextmanager
    def loaded(self, index: int, change: Callable[[str, Tensor], None] | None = None) -> Iterator[nn.Module]:
        """Block `index` with its values in memory; until the end of the `with`, `forward` executes it.

        change: is given every parameter's name in the block and its values, in the stored dtype, and may change them.
        """
        block, stub = self._blocks[index], self._list[index]
        empty = dict(block.named_parameters())
        try:
            self._fill(block, f"{self.prefix}.{index}.", change)
            block.to(self.device)
            self._list[index] = self._loaded = block
            if index:  # the stubs before it must know; those after it learn from its first pass
                self._learn_members()
            yield block
        finally:
            self._list[index], self._loaded = stub, None
            for name, parameter in empty.items():
                _put(block, name, parameter)

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,  # (batch, length) int64
        hidden: Tensor | None = None,  # (batch, length, width) to enter the block; by default the model's own
    ) -> tuple[Tensor, Tensor]:
        """What entered the loaded block and what left it, (batch, length, width) each, on the device."""
        entered = left = None

        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
            nonlocal entered
            entered = (args[0] if args else kwargs["hidden_states"]) if hidden is None else hidden.to(self.device)
            return ((entered, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entered})

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            nonlocal left
            left = output[0] if isinstance(output, tuple) else output
            self._members = len(output) if isinstance(output, tuple) else 0

        hooks = [
            self._loaded.register_forward_pre_hook(enter, with_kwargs=True),
            self._loaded.register_forward_hook(leave),
        ]
        try:
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return entered, left

    def _learn_members(self) -> None:
        """Find out from the first loaded block whether blocks return a tensor or a tuple; stubs do the same."""
        if self._members is None:
            self.forward(torch.zeros(1, 2, dtype=torch.int64))

    def _fill(self, module: nn.Module, prefix: str, change: Callable[[str, Tensor], None] | None = None) -> None:
        """Give a module's parameters their values, and its buffers those that the checkpoint has."""
        for name, tensor in [*module.named_parameters(), *_persistent_buffers(module)]:
            values = self._source(prefix + name, tensor)
            if values is None:
                if tensor.is_meta:
                    raise GrampruneError(
                        f"the checkpoint has no {prefix}{name}: it does not fit its config.json; load and save it "
                        "once with save_pretrained of the installed transformers."
                    )
                continue
            if values.shape != tensor.shape:
                raise GrampruneError(
                    f"{prefix}{name} is {list(values.shape)} in the checkpoint, {list(tensor.shape)} by config.json."
                )
            if change:
                change(name, values)
            _put(module, name, values.to(self.dtype) if tensor.is_meta else values.to(tensor.dtype))


class _Skip(nn.Module):
    """Stands where a block is not executed: hands the hidden states on, answers questions as the block would."""

    def __init__(self, block: nn.Module, owner: Blocks):
        super().__init__()
        # Past nn.Module's registration, so that the block's parameters are not found here.
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_owner", owner)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block, name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._owner._members is None:
            self._owner._loaded(hidden_states, *args, **kwargs)  # its hook notes what it returns
        members = self._owner._members
        return (hidden_states, *[None] * (members - 1)) if members else hidden_states


def open_blocks(folder: Path | str, dtype: str = "auto", device: str = "cpu") -> tuple[Blocks, Keys]:
    """The blocks of a checkpoint folder, and its parameters. dtype: "auto" is the checkpoint's own."""
    config, weights = parse_config(folder), Weights(folder)
    model = empty_model(config, compute_dtype(dtype, config, weights))
    keys = Keys(model, weights)
    return Blocks(model, keys.read, device), keys


def _find_blocks(model: nn.Module, config: PreTrainedConfig) -> tuple[str, nn.ModuleList]:
    """The outermost ModuleList that is as long as the config says, and its name."""
    count = config.get_text_config().num_hidden_layers
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    outermost = [n for n in found if not any(n != other and n.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise GrampruneError(
            f"model type {config.model_type}: expected one list of {count} decoder blocks (num_hidden_layers), found "
            f"{outermost or 'none'}; this architecture is not supported."
        )
    return outermost[0], found[outermost[0]]


def _refuse_shared(model: PreTrainedModel, prefix: str) -> None:
    """Raises GrampruneError for parameters that several blocks share, tied by name or the same by identity."""
    shared = [(name, source) for name, source in getattr(model, "all_tied_weights_keys", {}).items()]
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        shared += [(name, first)] if first != name else []
    for name, other in shared:
        places = [one.removeprefix(f"{prefix}.").partition(".")[0] for one in (name, other) if one.startswith(prefix)]
        if len(set(places)) > 1:
            raise GrampruneError(
                f"model type {model.config.model_type}: the blocks {places[1]} and {places[0]} share {name}; models "
                "whose blocks share parameters cannot be pruned yet."
            )


def _parameters(module: nn.Module) -> int:
    """How many; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{path}.{name}" if path else name, buffer)
        for path, owner in module.named_modules()
        if not isinstance(owner, _Skip)
        for name, buffer in owner._buffers.items()
        if buffer is not None and name not in owner._non_persistent_buffers_set
    ]


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer by its dotted name.

    A parameter requires gradients where the model's own does, though none are computed: torch chooses by it how a
    product is summed up, and a block's outputs are to be the whole model's.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    elif isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=owner._parameters[leaf].requires_grad)
