"""Where a checkpoint has the parameters of a model, found as transformers finds them, with no code per family.

transformers renames keys on load, splits and merges tensors, adds or drops the base model's name, and ties parameters
in both directions. Its own rules are asked here, without weights. What they do to the rows of a matrix is learnt by
sending row numbers through them instead of values: so the stages read and write a linear's place in the files by
themselves, and need no transformers for it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from gramprune.errors import GrampruneError
from gramprune.model.folder import AGAIN
from gramprune.model.places import Place, fill, rows_of, runs
from gramprune.model.weights import Weights
from gramprune.pruning.numerics import finite


class Keys:
    """The parameters of a model in a checkpoint.

    model: of transformers, without values. weights: the checkpoint's tensors.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights):
        self._model, self.weights = model, weights
        self._known: dict[str, Tensor] = model.state_dict()
        self._sources: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """From a parameter, the first of those that a converter makes together, to (pattern, key) of its tensors."""
        self._converters: dict[str, WeightConverter] = {}
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        base = model.base_model_prefix
        for key in sorted(weights, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, base, self._known)
            if name not in self._known and key in self._known:
                name, pattern = rename_source_key(key, [], [], base, self._known)
            if name in self._known:
                if pattern is not None:
                    self._converters.setdefault(name, by_pattern[pattern])
                self._sources[name].append((pattern or key, key))
        self._made_with = self._together()
        self._arranged: dict[str, tuple[list[str], Tensor, bool]] = {}
        self._tied = _both_ways(getattr(model, "all_tied_weights_keys", {}))

    def _together(self) -> dict[str, str]:
        """From every parameter that a converter makes to the first one of those that it makes together."""
        made = {}
        for first in self._converters:
            for name in self._convert(first, self._shapes(first)):
                made[name] = first
        return made

    def _convert(self, first: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a converter makes of its tensors, by the names of the parameters."""
        converter: Any = deepcopy(self._converters[first])
        for pattern, key in self._sources[first]:
            converter.add_tensor(first, key, pattern, tensors[key])
        made = converter.convert(first, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _shapes(self, first: str) -> dict[str, Tensor]:
        """The tensors of a converter without values."""
        return {key: torch.empty(self.weights.shape(key), device="meta") for _, key in self._sources[first]}

    def _origins(self, name: str) -> list[str]:
        """The parameters in whose place one is stored, itself first: several only of tied ones."""
        same = (name, *self._tied.get(name, ()))
        return [other for other in same if other in self._made_with or other in self._sources]

    def _origin(self, name: str) -> str | None:
        """The first of them; None where the checkpoint has none."""
        return next(iter(self._origins(name)), None)

    def read(self, name: str, like: Tensor) -> Tensor | None:
        """The values of a parameter or buffer, in the stored dtype; None where the checkpoint has none.

        Raises GrampruneError for values that are not finite.
        """
        origin = self._origin(name)
        if origin is None:
            return None
        first = self._made_with.get(origin)
        if first is None:
            values = self.weights.read(self._only_key(origin))
        elif (rows := self._stored_rows(origin)) is not None:
            values = rows
        else:
            values = self._convert(first, {key: self.weights.read(key) for _, key in self._sources[first]})[origin]
        if not finite(values):
            raise GrampruneError(f"{self.weights.folder}: {name} holds NaN or infinite values; {AGAIN}.")
        return values

    def _stored_rows(self, origin: str) -> Tensor | None:
        """A parameter put together from rows as they are stored, one stored tensor in memory at a time.

        transformers' own conversion has all of them in memory two or three times, which counts where a block's experts
        are stored one by one. None for what is no arrangement of rows of one dtype.
        """
        shape = self._known[origin].shape
        dtypes = {self.weights.dtype(key) for key in self.keys(origin)}
        try:
            place, turned = self.place(origin)
        except GrampruneError:
            return None
        if turned or len(shape) < 2 or len(dtypes) > 1:
            return None
        values = torch.empty(shape, dtype=dtypes.pop())
        fill(values.flatten(0, -2), place, self.weights)
        return values

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape that a parameter has in the checkpoint, after conversion; None where it has none."""
        origin = self._origin(name)
        if origin is None:
            return None
        first = self._made_with.get(origin)
        if first is None:
            return self.weights.shape(self._only_key(origin))
        return tuple(self._convert(first, self._shapes(first))[origin].shape)

    def keys(self, name: str) -> list[str]:
        """The keys of the tensors that a parameter is made from; none where the checkpoint has none."""
        origin = self._origin(name)
        return [] if origin is None else [key for _, key in self._sources[self._made_with.get(origin, origin)]]

    def place(self, name: str, part: int | None = None, parts: int = 1) -> tuple[Place, bool]:
        """Where the rows of a matrix are stored, or of one of its equal parts, and whether it is stored transposed.

        Of a parameter with three dimensions, the rows of all matrices are counted one after the other.
        Raises GrampruneError if it is no arrangement of stored rows, and for one that is stored several times.
        """
        origins = self._origins(name)
        if not origins:
            raise GrampruneError(f"{self.weights.folder} holds no {name}, which the model needs.")
        origin, *copies = origins
        if copies:
            raise GrampruneError(
                f"{self.weights.folder} holds {origin} and {copies[0]}, which are one matrix by config.json: save the "
                "model once with save_pretrained, or set tie_word_embeddings to false there if they differ."
            )
        if origin not in self._arranged:
            self._arranged[origin] = self._rows(origin)
        keys, order, turned = self._arranged[origin]
        count = len(order) // parts
        start = (part or 0) * count
        return runs(keys, order[start : start + count], self.weights.shape), turned

    def _rows(self, origin: str) -> tuple[list[str], Tensor, bool]:
        """The tensors that hold a parameter, and the numbers of their rows in the order of its own, or of its columns.

        Which row goes where is seen by converting numbers of rows: where they lie in a row, the file's rows are the
        parameter's columns. Other numbers must go the same way, else more is done to them than to be moved.
        """
        first = self._made_with.get(origin)
        if first is None:
            key = self._only_key(origin)
            return [key], torch.arange(rows_of(self.weights.shape(key))), False
        keys, count, numbers = [key for _, key in self._sources[first]], 0, {}
        for key in keys:
            shape = self.weights.shape(key)
            numbers[key] = torch.arange(count, count + rows_of(shape)).reshape(*shape[:-1], 1)
            if len(keys) == 1:  # what is done may depend on the shape; of several, whole ones would be put together
                numbers[key] = numbers[key].expand(shape)
            count += rows_of(shape)
        order, shape = self._convert(first, numbers)[origin], self._known[origin].shape
        order = order[None] if order.ndim == 1 else order
        rows, columns = order[..., :1], order[..., :1, :]
        if len(keys) == 1 and order.shape == shape:
            turned = not torch.equal(order, rows.expand(shape))
            known = not turned or torch.equal(order, columns.expand(shape))
        else:
            turned = order.shape[-1] > 1
            known = order.shape == ((*shape[:-2], 1, shape[-1]) if turned else (*shape[:-1], 1))
        others = self._convert(first, {key: 3 * tensor + 7 for key, tensor in numbers.items()})[origin]
        moved = torch.equal(others, 3 * order + 7) and 0 <= int(order.min()) <= int(order.max()) < count
        if not (known and moved):
            raise GrampruneError(
                f"{origin} is no arrangement of rows of {', '.join(keys[:3])} in the checkpoint; it cannot be pruned "
                "yet: leave it dense with `exclude`, or save the model once with save_pretrained."
            )
        return keys, (columns if turned else rows).flatten(), turned

    def missing(self) -> list[str]:
        """Parameters that transformers would have to make anew, at random."""
        ignored = getattr(self._model, "_keys_to_ignore_on_load_missing", None) or []
        buffers = {name for name, _ in self._model.named_buffers()}
        return [
            name
            for name in self._known
            if name not in buffers
            and self._origin(name) is None
            and not any(re.search(pattern, name) for pattern in ignored)
        ]

    def _only_key(self, name: str) -> str:
        """The key of a parameter that is one tensor. Raises GrampruneError if two keys stand for it."""
        keys = [key for _, key in self._sources[name]]
        if len(keys) > 1:
            raise GrampruneError(
                f"{self.weights.folder} holds {keys[0]!r} and {keys[1]!r}, which both stand for {name}: which one is "
                "meant cannot be known; save the model once with save_pretrained."
            )
        return keys[0]


def _both_ways(tied: dict[str, str]) -> dict[str, list[str]]:
    """From every tied parameter to the others that are the same: what transformers ties, it ties in both directions."""
    groups: dict[str, list[str]] = defaultdict(list)
    for target, source in tied.items():
        groups[source].append(target)
    found: dict[str, list[str]] = {}
    for source, targets in groups.items():
        for name in (source, *targets):
            found[name] = [other for other in (source, *targets) if other != name]
    return found
