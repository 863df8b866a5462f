"""A model as a sequence of decoder blocks, of which one at a time is in memory; no family has code of its own.

The model is built from its config with parameters on the meta device. Only what stands outside the blocks
(embeddings, norms) and one block get real values. The model's *own* forward then prepares masks, rotary embeddings,
sliding windows and whatever a family needs; pass-through stubs stand in the place of all other blocks, and the stored
hidden states are put in front of the one real block. So its outputs are bit-identical to the full model's, on
one machine with as many threads and weights that lie alike in memory; elsewhere they differ in the last places.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel

from gramprune.errors import GrampruneError
from gramprune.model.keys import Keys
from gramprune.model.loading import compute_dtype, empty_model, parse_config
from gramprune.model.parts import decoder_of, find_blocks, given_by, through_head, token_embedding, trunk_of
from gramprune.model.products import Enough
from gramprune.model.weights import Weights

HIDDEN = "hidden"
Flow = dict[str, Tensor]
"""What goes from block to block: the hidden states (batch, length, …), and what blocks leave for later ones in a
mapping that they are all given, such as keys and values that several share (batch, …)."""

Source = Callable[[str, Tensor], Tensor | None]
"""(name in the model, the tensor without values) -> its values on the CPU, None where there are none."""


class Blocks:
    """A model without weights, and the means to execute one of its blocks.

    whole: as `empty_model` makes it. source: where values come from.
    Raises GrampruneError if the blocks cannot be found.
    """

    def __init__(self, whole: PreTrainedModel, source: Source, device: str = "cpu"):
        config = whole.config
        self.whole, self.model = whole, decoder_of(whole)
        prefix = next(name for name, module in whole.named_modules() if module is self.model)
        path, self._list = find_blocks(self.model, config)
        self.trunk = trunk_of(whole)
        self.prefix = f"{prefix}.{path}" if prefix else path
        """Name of the list of blocks in the model: the parameters of block 3 start with `{prefix}.3.`"""
        self.kind: str = config.model_type
        self.dtype, self.device, self._source = whole.dtype, device, source
        self._blocks = list(self._list)
        tied = whole.all_tied_weights_keys  # each is another parameter, once more
        self._tied: dict[str, str] = tied | {name: name for name in tied.values()}
        self.places = Counter(self._tied.values())
        """In how many places of the model a parameter stands, of those that stand in several."""
        base = _distinct(self.model, f"{prefix}." if prefix else "", tied)
        outside, head = base - _distinct(self._list, f"{self.prefix}.", tied), _distinct(whole, "", tied) - base
        self.width: int = config.get_text_config().hidden_size
        self.shape: tuple[int, ...] = (self.width,)
        """Of the hidden states of one token; most models have one vector for each, some several."""
        self.sizes = {"outside": outside, "head": head}
        """Numbers of parameters that are in no block; `head` is all that does not feed the blocks and is not tied."""
        self._members: int | None = None  # of what a block returns: 0 for a tensor, else the tuple's length
        self.beside: tuple[Any, ...] = ()
        """What the last block gave beside hidden states; stubs give None instead, or `instead`."""
        self.instead: tuple[Any, ...] | None = None
        self._loaded: nn.Module | None = None
        for index, block in enumerate(self._blocks):
            self._list[index] = _Skip(block, self)
        self._outside = f"{prefix}." if prefix else ""
        self._embedding = token_embedding(self.model)
        """While it has no values: where stored hidden states enter a block, most models need none."""
        self._free_of_it: nn.Module | None = None  # a block that gets nothing else that is made of embeddings
        if self._embedding:
            _put(self._embedding, "weight", torch.full((1, 1), torch.nan, dtype=self.dtype))
        self._fill(self.model, self._outside)  # what is left now stands outside the blocks
        self.model.to(device)
        if self._embedding:  # only now: a copy on another device would have as much memory as it has numbers
            whole_size = self._embedding.num_embeddings, self._embedding.embedding_dim
            _put(self._embedding, "weight", self._embedding.weight.data.expand(whole_size))
        self._learn_shape()

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> nn.Module:
        """A block, without values unless it is loaded."""
        return self._blocks[index]

    def shared(self, index: int) -> dict[str, str]:
        """The parameters of a block that stand elsewhere too, by their names in it: what they are called as one."""
        names = {name: f"{self.prefix}.{index}.{name}" for name, _ in self._blocks[index].named_parameters()}
        return {name: self._tied[whole] for name, whole in names.items() if whole in self._tied}

    @property
    def spared(self) -> int:
        """How many of the parameters `outside` have had no values so far, as nothing needed them."""
        return self._embedding.weight.numel() if self._embedding else 0

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
            yield block
        finally:
            self._list[index], self._loaded = stub, None
            for name, parameter in empty.items():
                _put(block, name, parameter)

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,  # (batch, length) int64
        entering: Flow | None = None,  # what is to enter the block; by default the model's own
    ) -> tuple[Flow, Flow]:
        """What entered the loaded block and what left it, on the device; nothing left it where `Enough` was raised."""
        return self.differentiable(tokens, entering)

    def differentiable(self, tokens: Tensor, entering: Flow | None = None) -> tuple[Flow, Flow]:
        """The same as `forward`, and gradients flow back to parameters that require them."""
        if self._members is None and self._loaded is not self._blocks[0]:
            with _disable_current_modes():  # nobody is to see this pass
                self._pass(tokens[:1], entering and {name: tensor[:1] for name, tensor in entering.items()}, True)
        return self._pass(tokens, entering)

    @torch.no_grad()
    def last(self, tokens: Tensor, entering: Flow | None = None) -> Tensor:
        """What the model's trunk makes of what leaves the last block, which is loaded; see `given_by`.

        (batch, length, width), on the device.
        """
        return given_by(self.trunk, lambda: self.forward(tokens, entering))

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Until the end of the `with`, what makes logits is in memory: hidden states (positions, width) of what `last`
        gives -> (positions, vocabulary)."""
        self._embed()  # the head may be the same table
        beside = {name: module for name, module in self.whole.named_children() if self.model not in module.modules()}
        empty = [(module, dict(module.named_parameters())) for module in beside.values()]
        there = {self._tied.get(name, name): one for name, one in self.whole.named_parameters() if not one.is_meta}
        try:
            for path, module in beside.items():
                self._fill(module, f"{path}.", there=there)
                module.to(self.device)
            yield partial(through_head, self.whole, self.trunk)
        finally:
            for module, parameters in empty:
                for name, parameter in parameters.items():
                    _put(module, name, parameter)

    def _pass(self, tokens: Tensor, entering: Flow | None, learning: bool = False) -> tuple[Flow, Flow]:
        """learning: a stub asks the block what it returns, before it works itself."""
        if entering is None:
            self._embed()
        embedded, block = self._embedding, self._loaded
        assert block is not None, "blocks are executed inside `loaded`"
        entered: Flow = {}
        left: Flow = {}
        mappings: dict[str, tuple[MutableMapping, dict]] = {}

        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
            hidden = args[0] if args else kwargs["hidden_states"]
            if self._embedding and self._free_of_it is not module:
                if _hold_nan([args[1:], {**kwargs, "hidden_states": None}]):
                    raise _EmbeddingsNeeded
                self._free_of_it = module
            if entering is not None:
                hidden = entering[HIDDEN].to(self.device).movedim((0, 1), self._dimensions)
            for name, mapping in kwargs.items():
                if isinstance(mapping, MutableMapping):
                    mapping.update(_nested(entering or {}, name, self.device))
                    mappings[name] = mapping, dict(mapping)
            entered.update(entering or {}, **{HIDDEN: hidden.movedim(self._dimensions, (0, 1))})
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            if left and not learning:
                raise self._refused("works several times on the same tokens")
            several = isinstance(output, (tuple, list))
            hidden = output[0] if several else output
            self._members = len(output) if several else 0
            self.beside = tuple(output[1:]) if several else ()
            left.update(entering or {}, **{HIDDEN: hidden.movedim(self._dimensions, (0, 1))})
            for name, (mapping, before) in mappings.items():
                left.update(_flat({key: v for key, v in mapping.items() if before.get(key) is not v}, name))

        hooks = [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave),
        ]
        try:
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        except Enough:
            return entered, {}
        except _EmbeddingsNeeded:
            self._embed()
            left.clear()
        finally:
            for hook in hooks:
                hook.remove()
        if embedded is not self._embedding:
            return self._pass(tokens, entering, learning)
        if not left:
            raise self._refused("has no part in what the model makes of text alone")
        return entered, left

    def _embed(self) -> None:
        """Give the token embeddings their values, if they have none yet."""
        if self._embedding:
            embedding, self._embedding = self._embedding, None
            name = next(name for name, module in self.model.named_modules() if module is embedding)
            _put(embedding, "weight", torch.empty(embedding.weight.shape, dtype=self.dtype, device="meta"))
            self._fill(embedding, f"{self._outside}{name}.")
            embedding.to(self.device)

    def _refused(self, what: str) -> GrampruneError:
        index = next(index for index, block in enumerate(self._blocks) if block is self._loaded)
        return GrampruneError(f"model type {self.kind}: block {index} {what}; this architecture cannot be pruned yet.")

    @torch.no_grad()
    def _learn_shape(self) -> None:
        """Find out what shape hidden states have: with the sequences grows one dimension, with their length another."""

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            shapes.append((args[0] if args else kwargs["hidden_states"]).shape)
            raise Enough

        shapes: list[torch.Size] = []
        hook = self._list[0].register_forward_pre_hook(note, with_kwargs=True)
        for size in ((1, 2), (2, 2), (1, 3)):
            with suppress(Enough):
                self.model(input_ids=torch.zeros(size, dtype=torch.int64, device=self.device), use_cache=False)
        hook.remove()
        one, more, longer = shapes
        self._dimensions = tuple(
            next(d for d, (a, b) in enumerate(zip(one, other, strict=True)) if a != b) for other in (more, longer)
        )
        self.shape = tuple(size for d, size in enumerate(one) if d not in self._dimensions)

    def _fill(
        self,
        module: nn.Module,
        prefix: str,
        change: Callable[[str, Tensor], None] | None = None,
        there: Mapping[str, nn.Parameter] = MappingProxyType({}),  # with values, by the names that they have as one
    ) -> None:
        """Give a module's parameters their values, and its buffers those that the checkpoint has."""
        for name, tensor in [*module.named_parameters(), *_persistent_buffers(module)]:
            if self._embedding and tensor is self._embedding.weight:
                continue
            if (known := there.get(self._tied.get(prefix + name, ""))) is not None:
                _put(module, name, known)
                continue
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


class _EmbeddingsNeeded(Exception):
    """A block gets something that is made of the token embeddings, besides hidden states."""


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
            with suppress(Exception):  # of a block that wants to know where it stands; then it is taken for a tensor
                self._owner._loaded(hidden_states, *args, **kwargs)  # its hook notes what it returns
        members = self._owner._members or 0
        others = self._owner.instead or [None] * (members - 1)
        return (hidden_states, *others) if members else hidden_states


def _flat(mapping: dict[Any, Any], name: str) -> Flow:
    """The tensors in a mapping, and those in tuples in it, by place: `name/key/1`."""
    found: Flow = {}
    for key, value in mapping.items():
        members = value if isinstance(value, tuple) else (value,)
        found |= {f"{name}/{key}/{i}": each for i, each in enumerate(members) if isinstance(each, Tensor)}
    return found


def _nested(flow: Flow, name: str, device: str) -> dict[str, tuple[Tensor, ...]]:
    """The other way round: what a mapping of this name holds."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for place, tensor in flow.items():
        if place.startswith(f"{name}/"):
            found[place.split("/")[1]].append(tensor.to(device))
    return {key: tuple(members) for key, members in found.items()}


def open_blocks(folder: Path | str, dtype: str | None = None, device: str = "cpu") -> tuple[Blocks, Keys]:
    """The blocks of a checkpoint folder, and its parameters. dtype: see `compute_dtype`."""
    config, weights = parse_config(folder), Weights(folder)
    model = empty_model(config, compute_dtype(dtype, config, weights, device))
    keys = Keys(model, weights)
    return Blocks(model, keys.read, device), keys


def _hold_nan(values: Any) -> bool:
    """Whether there is a NaN in tensors, or in what holds tensors."""
    if isinstance(values, Tensor):
        return values.is_floating_point() and bool(values.isnan().any())
    if isinstance(values, dict):
        values = [*values.values()]
    return isinstance(values, (tuple, list)) and any(map(_hold_nan, values))


def _distinct(module: nn.Module, path: str, tied: dict[str, str]) -> int:
    """How many parameters a module has, tied ones once. path: what their names in the model begin with."""
    sizes = {f"{path}{name}": parameter.numel() for name, parameter in module.named_parameters()}
    return sum({tied.get(name, name): size for name, size in sizes.items()}.values())


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
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=owner.get_parameter(leaf).requires_grad)
