"""Models and tokenizers as transformers opens them: no stranger's code is run, and its errors become sentences."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto import modeling_auto

from gramprune import machine
from gramprune.errors import GrampruneError, first_line
from gramprune.model.folder import read_config
from gramprune.model.keys import Keys
from gramprune.model.weights import Weights
from gramprune.pruning.numerics import finite

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""What every call of transformers gets: nothing is fetched, and no code that lies beside a model is run."""
ADAPTER = "adapter_config.json"
MADE = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}
"""What parameters are made with."""
FILLING = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "constant_", "fill_", "zero_"}
"""What gives them values, of torch and of transformers."""
ALIGNED = 64
"""Weights begin at multiples of so many bytes: the order of a product's sums depends on it."""
LARGE = 2**24
"""Numbers in a tensor that takes much memory."""


def parse_config(folder: Path | str) -> PreTrainedConfig:
    """config.json as transformers reads it. Raises GrampruneError for what it cannot read."""
    folder = Path(folder)
    stated = read_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, **LOCAL)
    except Exception as error:  # of a dozen kinds, by family and version
        raise GrampruneError(unknown(stated, error)) from error


def unknown(stated: dict[str, Any], error: Exception) -> str:
    """The sentence for a config.json that transformers cannot make a model of."""
    reason = first_line(error).split(" Should contain")[0].rstrip(".")
    if isinstance(error, ImportError):
        return f"config.json (model_type {stated.get('model_type')!r}) needs packages that are not installed: {reason}."
    own = " It comes with code of its own, which is not run." if "auto_map" in stated else ""
    return (
        f"config.json (model_type {stated.get('model_type')!r}) is not of a causal language model that the installed "
        f"transformers {transformers.__version__} can make: {reason}.{own}"
    )


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that makes texts of this config's family. Raises GrampruneError if it has none.

    Of a model of texts and images some families name a class of the texts alone, which the whole's config does not fit.
    """
    for mapping in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        found: Any = mapping.get(type(config), None)
        if found and found.config_class not in config.sub_configs.values():
            return found
    raise GrampruneError(f"model type {config.model_type}: transformers has no causal language model of this type.")


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model without values: parameters on the meta device, buffers as they are computed.

    Experts work one after the other, each as a product of its own, which can be seen.
    """
    with init_empty_weights(include_buffers=False), NoValues():
        return model_class(config)._from_config(config, dtype=dtype, experts_implementation="eager").eval()


class NoValues(TorchFunctionMode):
    """While it is active, what could only be a parameter is made without memory, and none without memory is filled.

    accelerate makes each parameter before it drops the values, and the experts of one block may have 30 GB. Buffers
    keep their values: none has so many numbers with a fraction. To fill what has no memory takes torch half a
    millisecond for each parameter, in every job.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in MADE and kwargs.get("device") is None:
            size = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            dtype = kwargs.get("dtype") or torch.get_default_dtype()  # which may be one of Python's types
            fractions = dtype.is_floating_point if isinstance(dtype, torch.dtype) else dtype is float
            if fractions and math.prod(size) > LARGE:
                kwargs["device"] = "meta"
        elif getattr(func, "__name__", "") in FILLING:
            tensor = kwargs.get("tensor", args[0] if args else None)
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def open_model(folder: Path | str, dtype: str | None = None, device: str = "cpu") -> tuple[PreTrainedModel, Any, str]:
    """The whole model of a checkpoint folder, to be evaluated, its tokenizer, and the dtype, as `compute_dtype` says.

    Where several GPUs are visible, transformers divides it among them. Weights lie and experts work as where blocks are
    executed one by one, so that both give the same bits.
    Raises GrampruneError for a parameter that the checkpoint lacks, which transformers would make at random, and for
    values that are not finite.
    """
    folder = Path(folder)
    config, tokenizer = parse_config(folder), open_tokenizer(folder)
    weights = Weights(folder)
    chosen = compute_dtype(dtype, config, weights, device)
    several = device == "cuda" and torch.cuda.device_count() > 1
    how: dict[str, Any] = {"dtype": chosen, "experts_implementation": "eager"}
    how |= {"device_map": "auto"} if several else {}
    loaded: Any = model_class(config).from_pretrained(folder, output_loading_info=True, **how, **LOCAL)
    model, found = loaded
    lost = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if lost:
        raise GrampruneError(missing(folder, lost))
    keys = Keys(model, weights)
    for name, parameter in model.named_parameters():
        misplaced = parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNED
        if misplaced and (values := keys.read(name, parameter)) is not None:
            parameter.data = values.to(chosen)  # it was mapped, and not looked at yet
        if not finite(parameter):
            raise GrampruneError(f"{folder}: {name} holds NaN or infinite values.")
    return (model if several else model.to(device)).eval(), tokenizer, str(chosen).removeprefix("torch.")


def prepare() -> None:
    """Import what models of any family need, and have transformers make its table of renamed keys.

    Who starts several processes by forking does it once for all.
    """
    import transformers.models.llama.modeling_llama  # noqa: F401  # as good as another

    get_checkpoint_conversion_mapping("")


def missing(folder: Path, names: list[str]) -> str:
    """The sentence for parameters that a checkpoint lacks."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{folder} has no {names[0]}{others}, which transformers would make at random: it is not a whole causal "
        "language model that fits its config.json (a model without its head, or of another kind); give one that is."
    )


def open_tokenizer(folder: Path | str) -> Any:
    """A checkpoint folder's tokenizer. Raises GrampruneError if it cannot be opened, with what is missing."""
    folder = Path(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:  # of a dozen kinds, by tokenizer and package
        package = next((name for name in ("sentencepiece", "tiktoken", "protobuf") if name in str(error)), None)
        advice = f"; `pip install {package}`" if package and find_spec(package) is None else ""
        files = ", ".join(sorted(path.name for path in folder.glob("*token*"))) or "no tokenizer file"
        raise GrampruneError(
            f"the tokenizer of {folder} ({files}) cannot be opened: {first_line(error).rstrip('.')}{advice}; give a "
            "folder with the tokenizer.json that belongs to the model."
        ) from error


def vocabulary_of(folder: Path | str) -> int:
    """How many tokens a model has embeddings for, by its config.json."""
    return parse_config(folder).get_text_config().vocab_size


def refuse_adapter(folder: Path) -> None:
    """Raises GrampruneError where transformers would put an adapter that lies beside the weights into the model."""
    if (folder / ADAPTER).exists() and find_spec("peft"):
        raise GrampruneError(
            f"{folder} holds {ADAPTER}, so with the package peft transformers loads another model than its weights; "
            "merge the adapter into them, or move its files away."
        )


def compute_dtype(dtype: str | None, config: PreTrainedConfig, weights: Weights, device: str) -> torch.dtype:
    """The dtype of forward passes. None is what config.json says, or else what the first matrices have, as in
    transformers; "auto" too, but float32 on a CPU that would compute in it by way of float32, which takes far longer.
    """
    stored = stated_dtype(config) or weights.first_dtype()
    if dtype not in (None, "auto"):
        return getattr(torch, dtype)
    half = stored in (torch.bfloat16, torch.float16)
    if dtype and half and device == "cpu" and not machine.multiplies(str(stored).removeprefix("torch.")):
        return torch.float32
    return stored


def stated_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """What config.json says of the weights' dtype; None where it says nothing."""
    stated = config.get_text_config().dtype or config.dtype
    return getattr(torch, stated) if isinstance(stated, str) else stated
