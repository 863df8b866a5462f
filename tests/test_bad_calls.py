"""The library called with what it cannot take: one sentence with the layer and the argument, whatever the method."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import chain

import numpy as np
import pytest
import torch
from problems import assert_sentence, problem
from torch import Tensor

import gramprune as gp
from gramprune.pruning import joint, masks, methods, refine, updates

LAYER = "block 3 q_proj"
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Call:
    """A public function with a method, and the names of its arguments in their order."""

    function: Callable
    arguments: tuple[str, ...]
    method: str | None = None

    def __str__(self) -> str:
        return f"{self.function.__name__} {self.method or ''}".strip()

    def __call__(self, values: dict, **options):
        method = {"method": self.method} if self.method else {}
        return self.function(*(values[name] for name in self.arguments), **method, **options)

    def options(self) -> dict[str, type]:
        """What the method's function can be told, and of what type it is by default."""
        package, name = {
            "select_mask": (joint if self.method in methods.names(joint) else masks, "select"),
            "refine_mask": (refine, "refine"),
            "update_weight": (updates, "update"),
            "prune_weight": (joint, "prune"),
        }[self.function.__name__]
        parameters = signature(methods.load(package, self.method, "prune" if package is joint else name)).parameters
        return {name: type(p.default) for name, p in parameters.items() if p.default is not p.empty}


CALLS = [
    *(Call(gp.select_mask, ("weight", "gram", "pattern"), method) for method in masks.names()),
    *(Call(gp.refine_mask, ("weight", "gram", "mask", "pattern"), method) for method in methods.names(refine)),
    *(Call(gp.update_weight, ("weight", "gram", "mask"), method) for method in methods.names(updates)),
    *(Call(gp.prune_weight, ("weight", "gram", "pattern"), method) for method in methods.names(joint)),
    Call(gp.layer_error, ("weight", "new", "gram")),
    Call(gp.retarget_weight, ("weight", "gram", "cross")),
]


def good(dtype: torch.dtype = torch.float32) -> dict:
    """Arguments that fit each other. Weights are (6, 16)."""
    p = problem("well_conditioned", dtype)
    gram = gp.Gram(p.gram, LAYER, p.inputs.sum(dim=0), len(p.inputs))
    pattern = gp.Pattern.parse("2:4")
    mask = pattern.mask(p.weight.abs())
    cross = p.gram + torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {"weight": p.weight, "gram": gram, "mask": mask, "pattern": pattern, "new": p.weight * mask, "cross": cross}


NO_TENSORS = {
    "numpy": (lambda t: t.numpy(), "of type numpy.ndarray; expected a torch.Tensor"),
    "a list": (lambda t: t.tolist(), "of type list"),
    "None": (lambda t: None, "None"),
    "a text": (lambda t: "weights.pt", "'weights.pt'"),
    "a number": (lambda t: 0.5, "0.5"),
    "sparse": (lambda t: t.to_sparse(), "a tensor of layout torch.sparse_coo"),
    "meta": (lambda t: t.to("meta"), "on meta, without values"),
    "nested": (lambda t: torch.nested.nested_tensor([t]), "a tensor of layout nested"),
    "no dimensions": (lambda t: t.sum(), "()"),
    "a row": (lambda t: t[0], "(16,)"),
    "a batch": (lambda t: t[None], "(1, "),
    "no rows": (lambda t: t[:0], "(0, 16)"),
    "no columns": (lambda t: t[:, :0], ", 0)"),
    "too few columns": (lambda t: t[:, :15], ", 15)"),
}
NO_FLOATS = {
    "bool": (lambda t: t > 0, "torch.bool"),
    "integers": (lambda t: t.int(), "torch.int32"),
    "complex": (lambda t: t.to(torch.complex64), "torch.complex64"),
}
NOT_FINITE = {
    "NaN": (lambda t: t.clone().fill_diagonal_(NAN), "NaN or infinite"),
    "infinity": (lambda t: t.clone().fill_diagonal_(-INF), "NaN or infinite"),
}
TRANSPOSED = {"transposed": (lambda t: t.T.contiguous(), "(16, 6) on cpu; expected")}
BAD = {
    "weight": NO_TENSORS | NO_FLOATS | NOT_FINITE | TRANSPOSED | {"a Gram": (lambda t: gp.Gram(t.T @ t), "Gram")},
    "new": NO_TENSORS | NO_FLOATS | NOT_FINITE | TRANSPOSED,
    "cross": NO_TENSORS | NO_FLOATS | NOT_FINITE,
    "mask": NO_TENSORS
    | TRANSPOSED
    | {
        "bytes": (lambda t: t.to(torch.uint8), "torch.uint8"),
        "ones and zeros": (lambda t: t.float(), "torch.float32"),
    },
    "pattern": {
        "its text": (lambda pattern: "2:4", "'2:4'; expected a Pattern"),
        "its number": (lambda pattern: 0.5, "0.5; expected a Pattern"),
        "None": (lambda pattern: None, "None; expected a Pattern"),
        "a class": (lambda pattern: gp.Pattern, "expected a Pattern"),
        "other groups": (lambda pattern: gp.Pattern.parse("2:5"), "16 input columns, which the pattern 2:5"),
        "too little": (lambda pattern: gp.Pattern.parse(0.03), "sparsity 0.03 prunes none of the 16 weights of a row"),
        "too much": (lambda pattern: gp.Pattern.parse(0.99), "sparsity 0.99 prunes all of the 16 weights of a row"),
        "nothing at all": (lambda pattern: gp.Pattern.parse(1e-9, "matrix"), "1e-09 prunes none of the 96 weights"),
        "everything": (lambda pattern: gp.Pattern.parse(0.999999, "matrix"), "0.999999 prunes all of the 96 weights"),
    },
}
NO_GRAMS = (
    {name: case for name, case in NO_TENSORS.items() if name not in ("no columns", "too few columns")}
    | NO_FLOATS
    | {
        "not square": (lambda t: t[:, :15], "(16, 15)"),
        "half precision": (lambda t: t.half(), "torch.float16"),
        "bfloat16": (lambda t: t.bfloat16(), "torch.bfloat16"),
        "NaN": (lambda t: t.clone().fill_diagonal_(NAN), "NaN"),
        "infinity": (lambda t: t.clone().fill_diagonal_(INF), "infinite"),
        "a negative square": (lambda t: -t, "no negative values on its diagonal"),
        "one triangle": (lambda t: t.tril(), "expected a symmetric matrix"),
        "a product with other inputs": (lambda t: good()["cross"], "expected a symmetric matrix"),
        "too large an entry": (lambda t: t + 1e3 - 1e3 * torch.eye(16), "larger than the root"),
    }
)


def cases() -> Iterator:
    for call in CALLS:
        for argument in call.arguments:
            for kind, (change, words) in BAD.get(argument, {}).items():
                yield pytest.param(call, argument, change, words, id=f"{call}-{argument}-{kind}")


@pytest.mark.parametrize("call, argument, change, words", cases())
def test_a_bad_argument_is_refused_by_its_name_and_its_layers(call, argument, change, words):
    values = good()
    with pytest.raises(gp.GrampruneError) as error:
        call({**values, argument: change(values[argument])})
    assert_sentence(error, LAYER, words)
    if argument != "pattern" or "Pattern" in words:
        assert_sentence(error, f"{argument} ")


@pytest.mark.parametrize("kind", NO_GRAMS)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_matrix_that_is_no_gram_matrix_is_refused(call, kind):
    values, (change, words) = good(), NO_GRAMS[kind]
    with pytest.raises(gp.GrampruneError) as error:
        call({**values, "gram": change(values["gram"].matrix)})
    assert_sentence(error, "the layer: the Gram matrix", words)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_gram_matrix_of_other_inputs_is_refused(call):
    values = good()
    with pytest.raises(gp.GrampruneError) as error:
        call({**values, "gram": gp.Gram(values["gram"].matrix[:12, :12], LAYER, torch.ones(12), 64)})
    assert_sentence(error, LAYER, "weight is torch.float32 (6, 16) on cpu; expected a torch.Tensor (out, 12)")


def wrong_options() -> Iterator:
    """For every option of every method values of another type, and some out of range."""
    for call in CALLS:
        for name, kind in call.options().items() if call.method else ():
            numbers = ["20", NAN, INF, -1, True, [1], 10**400, 1j, torch.tensor(1.0)]
            wrong = [3, None, "nonsense", b"auto"] if kind is str else numbers
            wrong += [0.5] * (kind is int) + [None] * (kind in (int, float))
            for value in wrong:
                yield pytest.param(call, name, value, id=f"{call}-{name}-{str(value)[:12]}")


@pytest.mark.parametrize("call, name, value", wrong_options())
def test_an_option_of_another_type_or_out_of_range_is_refused_by_its_name(call, name, value):
    with pytest.raises(gp.GrampruneError) as error:
        call(good(), **{name: value})
    assert_sentence(error, LAYER, name)


@pytest.mark.parametrize("call", [call for call in CALLS if call.method], ids=str)
def test_an_unknown_option_and_an_unknown_method_are_refused_with_the_known_ones(call):
    known = call.options()
    with pytest.raises(gp.GrampruneError) as error:
        call(good(), dampening=0.1)
    assert_sentence(error, f"{LAYER}: {call.method} has no option 'dampening'", *known)
    assert ("did you mean 'damping'?" in str(error.value)) == ("damping" in known)
    for method in ("wnada", "", None, 3, ["admm"]):
        with pytest.raises(gp.GrampruneError) as error:
            call.function(*(good()[name] for name in call.arguments), method)
        assert_sentence(error, "there is no method", "Known: ", call.method)


@pytest.mark.parametrize("pull", ["1", None, NAN, INF, 0, -1, True])
def test_a_pull_that_is_no_number_above_0_is_refused(pull):
    values = good()
    with pytest.raises(gp.GrampruneError) as error:
        gp.retarget_weight(values["weight"], values["gram"], values["cross"], pull)
    assert_sentence(error, LAYER, "pull", pull if isinstance(pull, str | bool) else "expected")


@pytest.mark.parametrize("method", methods.names(refine))
def test_a_mask_without_the_patterns_zeros_is_not_refined(method):
    values = good()
    for mask, words in ((values["mask"] | True, "group 0 has 0 pruned"), (values["mask"].roll(1, 1), "pruned weights")):
        with pytest.raises(gp.GrampruneError) as error:
            gp.refine_mask(values["weight"], values["gram"], mask, values["pattern"], method)
        assert_sentence(error, LAYER, words, "2:4")


@pytest.mark.parametrize(
    "fields",
    [
        (0.0, "row"),
        (1.0, "row"),
        (NAN, "row"),
        ("0.5", "row"),
        (True, "row"),
        (0.5, "column"),
        (0.5, None),
        (0.5, "group"),
        (0.5, "row", 2, 4),
        (0.3, "group", 2, 4),
        (0.5, "group", 2.0, 4.0),
        (0.0, "group", 4, 4),
        (np.full((9, 9), 0.5), "row"),
    ],
)
def test_a_pattern_made_by_hand_that_is_none_is_refused(fields):
    with pytest.raises(gp.GrampruneError) as error:
        gp.Pattern(*fields)
    assert_sentence(error, "Pattern.parse", "Pattern(")


@pytest.mark.parametrize(
    "scores, words",
    [
        (np.ones((4, 4)), "scores is of type numpy.ndarray"),
        (torch.ones(4), "scores is torch.float32 (4,)"),
        (torch.ones(4, 4).int(), "scores is torch.int32"),
        (torch.ones(4, 6), "6 input columns"),
        (torch.full((4, 4), NAN), "NaN"),
    ],
)
def test_scores_that_have_no_smallest_ones_are_refused(scores, words):
    with pytest.raises(gp.GrampruneError) as error:
        gp.Pattern.parse("2:4").mask(scores)
    assert_sentence(error, words, "scores")


def same(found, expected) -> bool:
    """Whether results are equal to the bit, statistics too."""
    if isinstance(expected, tuple | list):
        return all(same(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, Tensor):
        return not found.requires_grad and torch.equal(found, expected)
    return found == expected


def spread(t: Tensor) -> Tensor:
    """The same values, with others between them in memory."""
    return torch.stack([t, t.roll(1)], dim=-1)[..., 0]


NEIGHBOURS = {
    "with gradients": lambda values: {
        name: value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in values.items()
    },
    "parameters": lambda values: {**values, "weight": torch.nn.Parameter(values["weight"])},
    "not contiguous": lambda values: {
        name: spread(value) if isinstance(value, Tensor) else value for name, value in values.items()
    },
    "transposed in memory": lambda values: {
        name: value.T.contiguous().T if isinstance(value, Tensor) else value for name, value in values.items()
    },
    "a Gram matrix with gradients, spread": lambda values: {
        **values,
        "gram": gp.Gram(
            spread(values["gram"].matrix).requires_grad_(), LAYER, spread(values["gram"].sums), np.int64(64)
        ),
    },
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_what_only_looks_different_gives_the_same(call, neighbour):
    assert same(call(NEIGHBOURS[neighbour](good())), call(good()))


@pytest.mark.parametrize("call", [call for call in CALLS if call.method != "dsnot"], ids=str)
def test_a_plain_gram_matrix_gives_the_same(call):
    values = good()
    assert same(call({**values, "gram": values["gram"].matrix}), call(values))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_weights_of_any_float_dtype_are_taken_in_the_gram_matrixs(call, dtype):
    values = good()
    rounded = {name: values[name].to(dtype) for name in ("weight", "new", "cross")}
    assert same(call({**values, **rounded}), call({**values, **{name: t.float() for name, t in rounded.items()}}))


@pytest.mark.parametrize("call", [call for call in CALLS if call.method], ids=str)
def test_numbers_of_numpy_are_numbers(call):
    changes = {"iterations": 7, "ramp": 3, "damping": 0.5, "tolerance": 0.25, "max_swaps": 1, "width": 3, "power": 0.25}
    options = {name: value for name, value in changes.items() if name in call.options()}
    if "ramp" in call.options():
        options["ramp"] = 3
    numpy = {name: (np.int32 if isinstance(value, int) else np.float32)(value) for name, value in options.items()}
    assert same(call(good(), **numpy), call(good(), **options))


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), "0.5", 0.5])
def test_a_sparsity_may_be_any_real_number(value):
    assert gp.Pattern.parse(value) == gp.Pattern(0.5, "row") and type(gp.Pattern.parse(value).sparsity) is float


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_one_token_and_one_row_are_enough(call):
    p = problem("one_token", torch.float32)
    mask = gp.Pattern.parse("2:4").mask(p.weight[:1].abs())
    gram = gp.Gram(p.gram, LAYER, p.inputs.sum(dim=0), 1)
    values = good() | {"weight": p.weight[:1], "gram": gram, "mask": mask, "new": p.weight[:1] * mask, "cross": p.gram}
    for result in chain([call(values)] if call.method is None else call(values)):
        assert not isinstance(result, Tensor) or result.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_arguments_on_different_devices_are_refused(call):
    values = good()
    gram = values["gram"]
    on_gpu = gp.Gram(gram.matrix.cuda(), LAYER, gram.sums.cuda(), gram.tokens)
    with pytest.raises(gp.GrampruneError) as error:
        call({**values, "gram": on_gpu})
    assert_sentence(error, LAYER, "weight is torch.float32 (6, 16) on cpu; expected", "on cuda:0")
    for name in set(call.arguments) & {"mask", "new", "cross"}:
        with pytest.raises(gp.GrampruneError) as error:
            call({**values, "gram": on_gpu, "weight": values["weight"].cuda()})
        assert_sentence(error, LAYER, f"{name} is", "on cpu", "on cuda:0")
