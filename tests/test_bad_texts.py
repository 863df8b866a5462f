"""Texts that cannot be read: each is refused in one sentence with file and line or field, if it can be at planning."""

import gzip
import json
from collections import Counter

import pytest
from conftest import changed
from problems import assert_sentence
from written import CHAT, fetched, lines, packed, table, texts

from gramprune.errors import GrampruneError
from gramprune.experiment import checks, settings

CUT_OFF = texts(*(f"Text {n}." for n in range(1, 58))) + '{"text": "Text 58 is cu\n' + texts("Text 59.")
DEEP = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
BAD = {  # name of the file, content, settings, what the sentence says
    "cut off in a text": ("a.jsonl", CUT_OFF, {}, "a.jsonl, line 58: not JSON (Unterminated string"),
    "cut off between fields": ("a.jsonl", texts("a") + '{"id": 3,\n' + texts("b"), {}, "a.jsonl, line 2: not JSON"),
    "cut off at the end": ("a.jsonl", texts("a", "b") + '{"te', {}, "a.jsonl, line 3: not JSON"),
    "two objects in a line": (
        "a.jsonl",
        texts("a") + '{"text": "b"} {"text": "c"}\n',
        {},
        "line 2: not JSON (Extra data",
    ),
    "Python's quotes": ("a.jsonl", "{'text': 'a'}\n", {}, "a.jsonl, line 1: not JSON"),
    "an array named .jsonl": ("a.jsonl", '[\n{"text": "a"}\n]\n', {}, "a.jsonl, line 1: not JSON"),
    "no JSON at all": ("a.jsonl", "Once upon a time.\n", {}, "a.jsonl, line 1: not JSON"),
    "lists in lists": ("a.jsonl", texts("a") + DEEP, {}, "a.jsonl, line 2"),
    "a number of 5,000 digits": ("a.jsonl", texts("a") + f'{{"text": {"1" * 5000}}}', {}, "a.jsonl, line 2: not JSON"),
    "another field": ("a.jsonl", lines({"body": "a", "id": 1}), {}, "line 1: there is no field 'text' but body, id"),
    "names of any kind": (
        "a.csv",
        '"a\nb",c' + "d" * 9999 + "\n1,2\n",
        {},
        "line 3: there is no field 'text' but a b, cddd",
    ),
    "half an emoji as a name": ("a.jsonl", '{"\\ud83d": 1}', {}, "line 1: there is no field 'text' but \ufffd; set"),
    "a field that one line lacks": ("a.jsonl", texts("a", "b") + lines({"body": "c"}), {}, "line 3: there is no field"),
    "a nested field that is not there": ("a.jsonl", lines({"a": {"c": "x"}}), {"field": "a.b"}, "no field 'a.b' but a"),
    "a field inside a text": ("a.jsonl", texts("a"), {"field": "text.b"}, "line 1: there is no field 'text.b'"),
    "an empty object": ("a.jsonl", "{}\n", {}, "line 1: there is no field 'text' but none at all"),
    "a number": (
        "a.jsonl",
        texts("a") + lines({"text": 3}),
        {},
        "line 2 has a number in the field 'text'; expected text",
    ),
    "true": ("a.jsonl", lines({"text": True}), {}, "line 1 has true or false in the field 'text'"),
    "an object": ("a.jsonl", lines({"text": {"a": "b"}}), {}, "line 1 has an object in the field 'text'"),
    "a list of texts": ("a.jsonl", lines({"text": ["a", "b"]}), {}, "line 1 has a list of which each is text"),
    "a line that is a number": ("a.jsonl", texts("a") + "7\n", {}, "line 2 has a number; expected text"),
    "a line without fields": (
        "a.jsonl",
        '"a"\n',
        {"field": "text"},
        "line 1 has text; expected an object with the field",
    ),
    "only nulls": ("a.jsonl", lines({"text": None}) * 3, {}, "dataset mine: there is no document in it"),
    "only empty texts": ("a.jsonl", texts("", ""), {}, "dataset mine: all of its documents (2) are empty"),
    "blank lines": ("a.jsonl", "\n \n\n", {}, "there is no document in it"),
    "bytes that are no UTF-8": (
        "a.jsonl",
        texts("a").encode() + b'{"text": "\xff"}\n',
        {},
        "line 2: the byte 0xff is no text",
    ),
    "Latin-1": (
        "a.txt",
        "One.\nTwo.\ncaf\xe9\n".encode("latin-1"),
        {},
        "a.txt, line 3: the byte 0xe9 is no text in UTF-8",
    ),
    "Latin-1 behind a megabyte": ("a.txt", b"word \n" * 200_000 + b"\xe9", {}, "a.txt, line 200001: the byte 0xe9"),
    "UTF-16 without its mark": ("a.txt", "One.\nTwo.".encode("utf-16-le"), {}, "line 1: the byte 0x00 is no text"),
    "UTF-16 cut in a character": ("a.txt", "One.".encode("utf-16") + b"\x00", {}, "a.txt"),
    "text and then a conversation": (
        "a.jsonl",
        texts("a") + lines({"text": [{"role": "user", "content": "b"}]}),
        {},
        "line 2 has a conversation, but the rows before have text",
    ),
    "a message without content": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": "a"}, {"role": "user"}]}),
        {},
        "line 1, message 2: expected a `role` and a `content` (or `from` and `value`), both text; found role: text",
    ),
    "a message without role": ("a.jsonl", lines({"messages": [{"content": "a"}]}), {}, "line 1, message 1: expected"),
    "a message whose content is a number": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": 4}]}),
        {},
        "line 1, message 1: expected a `role` and a `content`",
    ),
    "a message with a picture": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}),
        {},
        "line 1, message 1 has a part of type 'image'; only text",
    ),
    "a message from nobody known": (
        "a.jsonl",
        lines({"conversations": [{"from": "alien", "value": "a"}]}),
        {},
        "line 1, message 1 is from 'alien'; expected one of human, user, gpt",
    ),
    "a message from a list": (
        "a.jsonl",
        lines({"conversations": [{"from": ["a"], "value": "a"}]}),
        {},
        "line 1, message 1 is from ['a']",
    ),
    "messages that are half texts": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": "a"}, "b"]}),
        {},
        "line 1 has",
    ),
    "a label as token": ("a.jsonl", lines({"input_ids": [1, -100]}), {}, "line 1 has the token -100 in the field"),
    "a token beyond all": ("a.jsonl", lines({"input_ids": [1, 2**40]}), {}, "line 1 has the token 1099511627776"),
    "tokens with a fraction": (
        "a.jsonl",
        lines({"input_ids": [1, 2.5]}),
        {},
        "line 1 has a list of which each is a number",
    ),
    "an array cut off": ("a.json", '[{"text": "a"},\n{"text": "b"', {}, "a.json, line 2: not JSON"),
    "an array without its end": (
        "a.json",
        '[{"text": "a"},\n{"text": "b"}\n',
        {},
        "line 3: not JSON (the array does not end)",
    ),
    "an array without a comma": (
        "a.json",
        '[{"text": "a"}\n{"text": "b"}]',
        {},
        "line 2: not JSON (expected ',' or ']')",
    ),
    "an array with one comma more": ("a.json", '[{"text": "a"},\n]', {}, "a.json, line 2: not JSON"),
    "an array and more": ("a.json", '[{"text": "a"}]\n[]', {}, "line 2: not JSON (something follows the array)"),
    "an array damaged far in": (
        "a.json",
        "[\n" + (json.dumps({"text": "x" * 90}) + ",\n") * 3000 + '{"text" "a"}\n]',
        {},
        "a.json, line 3002: not JSON (Expecting ':' delimiter",
    ),
    "an array of numbers": ("a.json", "[1, 2]", {}, "element 1, line 1 has a number; expected text"),
    "an empty array": ("a.json", "[]", {}, "there is no document in it"),
    "an object cut off": ("a.json", '{\n "data": [\n  {"text": "a"},\n', {}, "a.json, line"),
    "an object with two lists": (
        "a.json",
        lines({"a": [{"text": "x"}], "b": [{"text": "y"}]}),
        {},
        "no field 'text' but a, b",
    ),
    "a comma that is not quoted": (
        "a.csv",
        "id,text\n1,One.\n2,Two, three.\n",
        {},
        "line 3: 3 fields where the first line names 2",
    ),
    "a record cut off": ("a.csv", 'id,text\n1,One.\n2,"Two.\nThree.\n', {}, "a.csv, line 3: the record cannot be read"),
    "a quote in a quoted text": ("a.csv", 'id,text\n1,"One" two.\n', {}, "a.csv, line 2: the record cannot be read"),
    "a column twice": ("a.csv", "text,text\na,b\n", {}, "line 1: two columns have the name 'text'"),
    "no column of that name": ("a.csv", "id;text\n1;One.\n", {}, "line 2: there is no field 'text' but id;text"),
    "names and no record": ("a.csv", "id,text\n", {}, "there is no document in it"),
    "a byte in a table": ("a.tsv", b"id\ttext\n1\tOne.\n2\t\x80\n", {}, "a.tsv, line 3: the byte 0x80"),
    "no Parquet": ("a.parquet", "not parquet", {}, "a.parquet cannot be read"),
    "Parquet cut off": ("a.parquet", table(text=["a"])[:-20], {}, "a.parquet cannot be read"),
    "no such column": ("a.parquet", table(body=["a"], id=[1]), {}, "row 1: there is no field 'text' but body, id"),
    "a column of numbers": (
        "a.parquet",
        table(text=[None, 1, 2]),
        {},
        "a.parquet, row 2 has a number in the field 'text'",
    ),
    "a column of bytes": ("a.parquet", table(text=[b"\xff"]), {}, "row 1 has bytes in the field 'text'"),
    "no gzip": ("a.txt.gz", "Once upon a time.", {}, "a.txt.gz cannot be read"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(texts("abc" * 9).encode())[:-9], {}, "a.jsonl.gz cannot be read"),
    "no zstd": ("a.txt.zst", "Once upon a time.", {}, "a.txt.zst cannot be read"),
    "zstd cut off": ("a.txt.zst", packed("zstd", "Once. " * 9999)[:-3], {}, "a.txt.zst cannot be read"),
    "a line in gzip": ("a.jsonl.gz", gzip.compress(CUT_OFF.encode()), {}, "a.jsonl.gz, line 58: not JSON"),
    "a document of Word": (
        "a.docx",
        "PK",
        {},
        "a.docx is of no known format; its name must end in one of .txt, .jsonl",
    ),
    "no ending": ("corpus", "Once.", {}, "corpus is of no known format"),
    "compressed Parquet": ("a.parquet.gz", "x", {}, "a.parquet.gz is of no known format"),
    "only a compression": ("a.gz", "x", {}, "a.gz is of no known format"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_text_that_cannot_be_read_is_refused_with_file_and_place(tmp_path, case):
    name, content, dataset, sentence = BAD[case]
    with pytest.raises(GrampruneError) as error:
        fetched(tmp_path, {name: content}, **dataset)
    assert_sentence(error, "dataset mine", sentence)
    assert not (tmp_path / "out.parquet").exists()


def test_the_second_of_two_files_is_named(tmp_path):
    with pytest.raises(GrampruneError) as error:
        fetched(tmp_path, {"a.jsonl": texts("a"), "b.jsonl": texts("b") + "{"})
    assert_sentence(error, "b.jsonl, line 2: not JSON")


def planned(folder, name, **dataset):
    """What planning says of a dataset: its checks, in this process."""
    content = {
        "model": "demo",
        "datasets": {"mine": {"path": str(folder / name), **dataset}},
        "calibration": {"dataset": "mine", "samples": 2, "length": 8},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 8}},
        "runs": [{"sparsity": 0.5, "mask": "wanda"}],
    }
    checks.check_texts(settings.load(content))


AT_PLANNING = {  # name of the file, its content, settings, what the sentence says
    "a folder": ("there", None, {}, "datasets.mine.path: {path} is a folder; name a file in it, or several as a list"),
    "no such file": ("a.txt", None, {}, "datasets.mine.path: the file {path} does not exist"),
    "an empty file": ("a.jsonl", "", {}, "datasets.mine.path: the file {path} is empty"),
    "an unknown ending": ("a.pdf", "x" * 99, {}, "{path} is of no known format"),
    "a pointer of Git LFS": (
        "a.parquet",
        "version https://git-lfs.github.com/spec/v1\noid",
        {},
        "is a Git LFS pointer",
    ),
    "a first line that is cut off": ("a.jsonl", '{"text": "On', {}, "{path}, line 1: not JSON"),
    "a field that is not there": (
        "a.jsonl",
        lines({"body": "One." * 9}),
        {},
        "{path}, line 1: there is no field 'text'",
    ),
    "no document": ("a.csv", "text\n", {}, "there is no document in {path}"),
    "no UTF-8": ("a.txt", b"caf\xe9" * 9, {}, "{path}, line 1: the byte 0xe9 is no text"),
    "no gzip": ("a.txt.gz", "Once upon a time." * 9, {}, "{path} cannot be read"),
    "no Parquet": ("a.parquet", "Once upon a time." * 9, {}, "{path} cannot be read"),
    "conversations without a template": (
        "a.jsonl",
        lines({"messages": CHAT}),
        {},
        "the dataset mine holds conversations, but the tokenizer of the model demo has no chat template",
    ),
    "too little": ("a.txt", "One.", {}, "has 4 bytes, too little text for the 16 tokens"),
    "a field of a .txt": ("a.txt", "One." * 9, {"field": "text"}, "`field` is 'text', but a .txt file has no fields"),
    "a split of a file": ("a.jsonl", texts("One." * 9), {"split": "test"}, "`split` is for datasets of the hub"),
}


@pytest.mark.parametrize("case", AT_PLANNING)
def test_what_can_be_seen_of_a_text_at_planning_is_said_there(tmp_path, case):
    name, content, dataset, sentence = AT_PLANNING[case]
    (tmp_path / "there").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GrampruneError) as error:
        planned(tmp_path, name, **dataset)
    assert_sentence(error, sentence.format(path=tmp_path / name))


def test_a_text_that_is_just_long_enough_with_a_stride_is_not_refused_at_planning(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 8 + "y" * 9 * 2)
    content = {
        "model": "demo",
        "datasets": {"mine": {"path": str(tmp_path / "a.txt")}},
        "calibration": {"dataset": "demo", "samples": 2, "length": 8},
        "evaluation": {"perplexity": {"datasets": ["mine"], "length": 8, "stride": 2, "windows": 10}},
        "runs": [{"sparsity": 0.5, "mask": "wanda"}],
    }
    checks.check_texts(settings.load(content))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.docx", "PK", "is of no known format"),
        ("a.jsonl", '{"body": "Once upon a time."}\n', "line 1: there is no field 'text' but body; set the dataset's"),
        ("a.jsonl", lines({"messages": CHAT}), "but the tokenizer of the model tiny has no chat template"),
        ("a.jsonl", CUT_OFF * 99, "a.jsonl, line 58: not JSON (Unterminated string"),  # by the first job
    ],
)
def test_snakemake_says_it_in_one_sentence(clone, config, tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)

    def use(c):
        c["datasets"]["calibration"] = {"path": str(tmp_path / name)}
        c["results"] = str(tmp_path / "results")

    done = clone.snakemake(str(tmp_path / "results/tiny/calibration.safetensors"), config=changed(config, use))
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in said
    found = Counter(line for line in said.splitlines() if line.startswith("gramprune:"))
    assert len(found) == 1 and sentence in next(iter(found))
