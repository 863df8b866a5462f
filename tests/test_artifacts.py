"""Files between stages: whole or not there, readable by others, checked when read; and the content hashes."""

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import assert_sentence
from safetensors.torch import load_file, save_file
from torch import Tensor

import gramprune
from gramprune import GrampruneError
from gramprune.storage import artifacts, fingerprint, tensorfile
from gramprune.storage.files import atomic, atomic_folder, read_json, write_json

PROVENANCE = {"stage": "gram", "model": "abc", "block": 3}


def some_tensors() -> dict[str, Tensor]:
    """Every dtype that the format of ours knows, empty ones, a scalar, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 100, (5, 3), generator=generator)
    tensors = {f"of {name}": values.to(dtype) for name, dtype in tensorfile.DTYPES.items()}
    return {
        **tensors,
        "empty": torch.empty(0, 4, dtype=torch.bfloat16),
        "no columns": torch.empty(4, 0),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "transposed": torch.rand(3, 7, generator=generator).T,
    }


@pytest.fixture
def written(tmp_path) -> Path:
    artifacts.write(tmp_path / "a.safetensors", some_tensors(), PROVENANCE)
    return tmp_path / "a.safetensors"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_an_artifact_is_a_safetensors_file_for_others(written):
    assert_same(load_file(written), some_tensors())


def test_an_artifact_reads_as_it_was_written(written):
    artifact = artifacts.read(written, stage="gram", block=3)
    assert artifact.provenance == PROVENANCE
    assert artifact.names == sorted(some_tensors())
    assert_same({name: artifact.read(name) for name in artifact.names}, some_tensors())
    for name, tensor in some_tensors().items():
        assert artifact.shape(name) == tuple(tensor.shape) and artifact.dtype(name) == tensor.dtype
    artifact.read("of F32").fill_(0)  # memory of its own
    assert_same({"of F32": artifact.read("of F32")}, {"of F32": some_tensors()["of F32"]})


def test_files_of_others_are_read(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    save_file(tensors, tmp_path / "other.safetensors")
    header = tensorfile.read_header(tmp_path / "other.safetensors")
    entries = header.entries.items()
    assert_same({name: tensorfile.read_tensor(tmp_path / "other.safetensors", e) for name, e in entries}, tensors)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 5), slice(1, 1), slice(3, 99), slice(None, -1), slice(None)])
def test_rows_are_slices_of_the_whole(written, rows):
    artifact = artifacts.read(written)
    for name, tensor in some_tensors().items():
        if tensor.ndim:
            read = artifact.read(name, rows)
            assert torch.equal(read, tensor[rows]), name
            assert read.data_ptr() % 64 == 0  # the same bits of what is computed with it, whatever was in memory before


def test_rows_appended_in_any_order_of_tensors_make_the_same_bytes(written, tmp_path):
    tensors = {name: tensor for name, tensor in some_tensors().items() if tensor.ndim}
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    artifacts.write(tmp_path / "whole", tensors, PROVENANCE)
    with artifacts.writing(tmp_path / "rows", shapes, PROVENANCE) as writer:
        for first in range(0, 8, 2):
            for name in reversed(tensors):
                writer.append(name, tensors[name][first : first + 2])
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_digest_stands_for_values_and_provenance(tmp_path):
    def digest(value: float, block: int) -> str:
        artifacts.write(tmp_path / "a", {"x": torch.tensor([value])}, {"block": block})
        return artifacts.read(tmp_path / "a").digest

    assert digest(1, 3) == digest(1, 3)
    assert len({digest(1, 3), digest(2, 3), digest(1, 4)}) == 3


def test_what_is_learnt_while_writing_goes_into_the_header(tmp_path):
    provenance = {"damping": {}}
    with artifacts.writing(tmp_path / "a", {"x": (torch.float32, (1,))}, provenance) as writer:
        writer.append("x", torch.ones(1))
        provenance["damping"]["mlp.down_proj"] = 0.1
    assert artifacts.read(tmp_path / "a").provenance == provenance
    assert load_file(tmp_path / "a")["x"] == 1


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 21])
def test_masks_round_trip_as_bits(tmp_path, width):
    mask = torch.rand(5, width, generator=torch.Generator().manual_seed(width)) < 0.5
    bits = artifacts.pack_mask(mask)
    assert (bits.dtype, bits.shape) == artifacts.mask_shape(5, width)
    artifacts.write(tmp_path / "a", {"q.mask": bits}, {})
    found = artifacts.read(tmp_path / "a").read_mask("q.mask", width)
    assert found.dtype == torch.bool and torch.equal(found, mask)


def test_a_truncated_file_is_refused_wherever_it_ends(written):
    whole = written.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1):
        written.write_bytes(whole[:length])
        with pytest.raises(GrampruneError) as error:
            artifacts.read(written)
        assert_sentence(error, written, "delete it")
    written.write_bytes(whole + b"\0")
    with pytest.raises(GrampruneError) as error:
        artifacts.read(written)
    assert_sentence(error, written, "delete it")


def as_file(header: object) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(st.binary(max_size=40))
@example(b"\xff" * 30)
@example(b"\0" * 30)
def test_garbage_is_refused_by_the_files_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("garbage") / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(GrampruneError) as error:
        artifacts.read(path)
    assert_sentence(error, path, "delete it")


@pytest.mark.parametrize(
    "header",
    [
        {},
        [],
        3,
        {"x": None},
        {"x": {"dtype": "F32", "shape": [1]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": []}},
        {"__metadata__": []},
        {"__metadata__": {"format": "pt"}},
        {"__metadata__": {"gramprune": "{"}},
        {"__metadata__": {"gramprune": "[]"}},
    ],
    ids=json.dumps,
)
def test_a_header_that_is_not_ours_is_refused_by_the_files_name(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(as_file(header))
    with pytest.raises(GrampruneError) as error:
        artifacts.read(path, stage="gram")
    assert_sentence(error, path, "delete it")


def test_a_missing_file_a_folder_and_a_checkpoint_are_refused(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "checkpoint")
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, ""),
        (tmp_path / "checkpoint", "no provenance"),
    ):
        with pytest.raises(GrampruneError) as error:
            artifacts.read(path)
        assert_sentence(error, path, words)


def test_another_provenance_is_refused_with_both_values(written):
    for key, value in {"stage": "mask", "block": 4, "seed": 0}.items():
        with pytest.raises(GrampruneError) as error:
            artifacts.read(written, **{key: value})
        assert_sentence(error, written, key, repr(PROVENANCE.get(key)), repr(value))


def test_a_tensor_that_is_not_there_is_refused_with_those_that_are(written):
    with pytest.raises(GrampruneError) as error:
        artifacts.read(written).read("k_proj")
    assert_sentence(error, written, "'k_proj'", "of BF16")


def test_an_artifact_that_was_not_finished_is_not_there_and_the_old_one_stays(written, tmp_path):
    before = written.read_bytes()
    shapes = {"x": (torch.float32, (2, 2))}
    for name, rows, error in [
        ("stopped", torch.ones(1, 2), KeyboardInterrupt),
        ("incomplete", torch.ones(1, 2), None),
        ("too long", torch.ones(3, 2), None),
        ("other dtype", torch.ones(2, 2).double(), None),
        (written.name, torch.ones(1, 2), RuntimeError),
    ]:
        with pytest.raises(error or ValueError), tensorfile.writing(tmp_path / name, shapes, {}) as writer:
            writer.append("x", rows)
            if error:
                raise error
    assert [path.name for path in tmp_path.iterdir()] == [written.name]
    assert written.read_bytes() == before


def test_a_folder_that_was_not_finished_is_not_there_and_the_old_one_stays(tmp_path):
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "model") as part:
            (part / "config.json").write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as part:
        (part / "config.json").write_text("third")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "second"


@pytest.mark.parametrize("below", ["a.json", "folder/a.json"])
def test_a_place_that_cannot_be_written_is_named_in_one_sentence(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / below
    for write in (
        lambda: write_json(path, {}),
        lambda: artifacts.write(path, some_tensors(), PROVENANCE),
        lambda: atomic_folder(path).__enter__(),
    ):
        with pytest.raises(GrampruneError) as error:
            write()
        assert_sentence(error, path, "could not be written")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_what_cannot_be_read_while_writing_is_not_blamed_on_the_new_file(tmp_path):
    with pytest.raises((GrampruneError, FileNotFoundError)) as error, atomic(tmp_path / "new"):
        (tmp_path / "missing").read_bytes()
    assert "new could not be written" not in str(error.value)


def test_json_files_round_trip_and_broken_ones_are_named(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"ρ": [1, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"ρ": [1, None]}
    (tmp_path / "half.json").write_text('{"a": ')
    for name in ("half.json", "none.json"):
        with pytest.raises(GrampruneError) as error:
            read_json(tmp_path / name)
        assert_sentence(error, tmp_path / name)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package that may be edited; `fingerprint` looks at it."""
    copy = tmp_path / "gramprune"
    shutil.copytree(Path(gramprune.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "ROOT", copy)
    fingerprint._read_module.cache_clear()
    yield copy
    fingerprint._read_module.cache_clear()


def wanda_code(package: Path, changed: str = "", change: Callable[[str], str] = str) -> str:
    """The digest of what a Wanda mask is made with, after a change to one file."""
    if changed:
        path = package / changed
        text = path.read_text(encoding="utf-8")
        assert change(text) != text
        path.write_text(change(text), encoding="utf-8")
    fingerprint._read_module.cache_clear()
    return fingerprint.code("gramprune.stages.mask", "gramprune.pruning.masks.wanda")


def add_code(text: str) -> str:
    return text + "\n\nanother = 1\n"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace('"""\n    ', '"""\n    # why\n\n    '), id="comment"),
        pytest.param(lambda text: re.sub(r'"""(?=\w)', '"""Reworded: ', text), id="docstrings"),
        pytest.param(lambda text: re.sub(r'"""\n( +)', r'"""\n\1"a note"\n\1', text), id="text"),
        pytest.param(lambda text: ast.unparse(ast.parse(text)), id="layout"),
    ],
)
@pytest.mark.parametrize("changed", ["stages/mask.py", "pruning/masks/wanda.py", "pruning/sparsity.py"])
def test_the_code_digest_does_not_see_words_nor_layout(package, changed, change):
    assert wanda_code(package) == wanda_code(package, changed, change)


@pytest.mark.parametrize(
    "changed",
    [
        "pruning/masks/magnitude.py",
        "pruning/joint/alps.py",
        "pruning/joint/admm.py",
        "pruning/updates/admm.py",
        "stages/update.py",
        "stages/fetch.py",
        "model/demo.py",
        "model/layout.py",
        "__init__.py",
    ],
)
def test_the_code_digest_does_not_see_other_methods_nor_other_stages(package, changed):
    assert wanda_code(package) == wanda_code(package, changed, add_code)


@pytest.mark.parametrize(
    "changed",
    [
        "stages/mask.py",
        "pruning/masks/wanda.py",
        "pruning/masks/__init__.py",
        "pruning/sparsity.py",
        "pruning/gram.py",
        "storage/files.py",
    ],
)
def test_the_code_digest_sees_the_stage_the_method_and_what_they_import(package, changed):
    assert wanda_code(package) != wanda_code(package, changed, add_code)


def test_the_code_digest_sees_imports_inside_functions(package):
    before = wanda_code(package)
    (package / "helper.py").write_text("x = 1")
    hidden = wanda_code(
        package, "pruning/masks/wanda.py", lambda text: text + "\n\ndef f():\n    from gramprune import helper\n"
    )
    assert len({before, hidden, wanda_code(package, "helper.py", add_code)}) == 3


def test_settings_are_the_same_in_any_order():
    assert fingerprint.canonical({"a": 1, "b": [2, "ρ"]}) == fingerprint.canonical({"b": [2, "ρ"], "a": 1})
    assert fingerprint.canonical({"a": 1}) != fingerprint.canonical({"a": 1.5})
    assert fingerprint.short("ρ") == hashlib.sha256("ρ".encode()).hexdigest()[:8]
