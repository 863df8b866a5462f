"""Texts as people really have them: each is read rightly, or refused in one sentence with file and line or field.

What is right stands in the tables; nothing of it comes from the readers.
"""

import bz2
import gzip
import json
from collections import Counter

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from conftest import changed
from problems import assert_sentence

from gramprune.errors import GrampruneError
from gramprune.experiment import checks, settings
from gramprune.stages.texts import fetch_data


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(*found: str) -> str:
    return lines(*({"text": text} for text in found))


def packed(codec: str, text: str) -> bytes:
    return arrow.compress(text.encode(), codec=codec, asbytes=True)


def table(**columns) -> bytes:
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def fetched(folder, files: dict, **dataset) -> tuple[list, dict]:
    """What `fetch_data` writes of these files, and what it notes."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    names = [str(folder / name) for name in files]
    chosen = settings.Dataset(path=names if len(names) > 1 else names[0], **dataset)
    fetch_data(folder / "out.parquet", "mine", chosen.source_settings, "code")
    written = parquet.read_table(folder / "out.parquet")
    about = json.loads(parquet.read_metadata(folder / "out.parquet").metadata[b"gramprune"])
    documents: dict[int, list] = {}
    for number, value in zip(written["document"].to_pylist(), written[about["kind"]].to_pylist(), strict=True):
        documents.setdefault(number, []).append(value)
    whole = [rows[0] if len(rows) == 1 else "".join(rows) for rows in documents.values()]
    return [json.loads(text) for text in whole] if about["kind"] == "messages" else whole, about


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


SAID = {"role": "user", "content": "Hi"}
CHAT = [SAID, {"role": "assistant", "content": "Hello."}]
ONE = {"text": "One é €."}
ODD = {  # name of the file, content, settings, documents
    "a mark of byte order and CRLF": (
        "a.jsonl",
        b"\xef\xbb\xbf" + b'{"text": "One."}\r\n{"text": "Two."}\r\n',
        {},
        ["One.", "Two."],
    ),
    "a mark in a .txt": ("a.txt", b"\xef\xbb\xbfOne.\r\nTwo.", {}, ["One.\nTwo."]),
    "UTF-16": ("a.txt", "One é €.\r\n".encode("utf-16"), {}, ["One é €.\n"]),
    "UTF-16, the other order": ("a.jsonl", b"\xfe\xff" + '{"text": "é"}\n'.encode("utf-16-be"), {}, ["é"]),
    "UTF-32": ("a.csv", "id,text\n1,é\n".encode("utf-32"), {}, ["é"]),
    "old Mac lines": ("a.jsonl", '{"text": "One."}\r{"text": "Two."}\r', {}, ["One.", "Two."]),
    "two files in one, each with its mark": (
        "a.jsonl",
        b'\xef\xbb\xbf{"text": "One."}\n\xef\xbb\xbf{"text": "Two."}\n',
        {},
        ["One.", "Two."],
    ),
    "blank lines between": ("a.jsonl", '\n{"text": "One."}\n\n  \n{"text": "Two."}', {}, ["One.", "Two."]),
    "half an emoji": ("a.jsonl", '{"text": "so \\ud83d"}\n', {}, ["so \ufffd"]),
    "a whole emoji in two escapes": ("a.jsonl", '{"text": "so \\ud83d\\ude00"}\n', {}, ["so \U0001f600"]),
    "half an emoji in a message": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "so \\ude00"}]}\n',
        {},
        [[{"role": "user", "content": "so \ufffd"}]],
    ),
    "a line separator in a text": ("a.jsonl", '{"text": "One.\u2028Two.\x85"}\n', {}, ["One.\u2028Two.\x85"]),
    "null and empty rows": (
        "a.jsonl",
        '{"text": null}\n{"text": "One."}\n{"text": ""}\n{"text": null}\n',
        {},
        ["One.", ""],  # an empty text is a document: wikitext's lines are joined with the empty ones
    ),
    "a nested field": ("a.jsonl", '{"a": {"b": "One."}}\n{"a": null}\n', {"field": "a.b"}, ["One."]),
    "a field with a dot": ("a.jsonl", '{"a.b": "One.", "a": {"b": "Two."}}\n', {"field": "a.b"}, ["One."]),
    "lines that are texts": ("a.jsonl", '"One."\n"Two."\n', {}, ["One.", "Two."]),
    "only some documents": (
        "a.jsonl",
        '{"text": "One."}\n{"text": null}\n{"text": "Two."}\n{"text": 3}',
        {"documents": 2},
        ["One.", "Two."],
    ),
    "capital letters": ("A.JSONL", '{"text": "One."}', {}, ["One."]),
    "another name for lines": ("a.ndjson", '{"text": "One."}', {}, ["One."]),
    "an array": ("a.json", ' [\n {"text": "One."} ,\n {"text": "[Two, {"}\n]\n', {}, ["One.", "[Two, {"]),
    "an array of texts": ("a.json", '["One.", "Two."]', {}, ["One.", "Two."]),
    "an array of a long text": (
        "a.json",
        json.dumps([{"text": "word " * 99_999}, ONE]),
        {},
        ["word " * 99_999, "One é €."],
    ),
    "an array in an object": ("a.json", '{"version": 1,\n "tags": ["x"],\n "data": [{"text": "One."}]}', {}, ["One."]),
    "one object": ("a.json", '{\n"text": "One."}', {}, ["One."]),
    "lines under the name of .json": ("a.json", '{"text": "One."}\n{"text": "Two."}\n', {}, ["One.", "Two."]),
    "a table": ("a.csv", 'id,text\n1,"One, ""two"",\nthree."\n2,Four.\n\n', {}, ['One, "two",\nthree.', "Four."]),
    "a table from Excel": ("a.csv", b'\xef\xbb\xbftext,id\r\n"One.",1\r\n', {}, ["One."]),
    "a table with tabs": ("a.tsv", 'id\ttext\n1\tOne, "two".\n', {}, ['One, "two".']),
    "a table's column": ("a.csv", "body,text\nOne.,Two.\n", {"field": "body"}, ["One."]),
    "a long field of a table": ("a.csv", "text\n" + "x" * 200_000, {}, ["x" * 200_000]),
    "Parquet": ("a.parquet", table(id=[1, 2], text=["One.", None]), {}, ["One."]),
    "a struct in Parquet": ("a.parquet", table(a=[{"b": "One.", "c": 1}, None]), {"field": "a.b"}, ["One."]),
    "a dictionary in Parquet": (
        "a.parquet",
        table(text=arrow.array(["One.", "One."]).dictionary_encode()),
        {},
        ["One."] * 2,
    ),
    "large strings": ("a.parquet", table(text=arrow.array(["One."], arrow.large_string())), {}, ["One."]),
    "gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "One."}\n'), {}, ["One."]),
    "gzip in two members": ("a.txt.gz", gzip.compress(b"One. ") + gzip.compress(b"Two."), {}, ["One. Two."]),
    "zstd": ("a.csv.zst", packed("zstd", "text\nOne.\n"), {}, ["One."]),
    "bzip2": ("a.json.bz2", bz2.compress(b'["One."]'), {}, ["One."]),
    "a mark in gzip": ("a.txt.gz", gzip.compress(b"\xef\xbb\xbfOne."), {}, ["One."]),
    "a long text": ("a.txt", "Once upon\na time. " * 99_999, {}, ["Once upon\na time. " * 99_999]),
    "a long text without a space": ("a.txt", "ab" * 99_999, {}, ["ab" * 99_999]),
    "messages": ("a.jsonl", lines({"id": 1, "messages": CHAT}, {"messages": []}), {}, [CHAT]),
    "messages under another name": ("a.jsonl", lines({"log": {"turns": CHAT}}), {"field": "log.turns"}, [CHAT]),
    "messages in an array": ("a.json", json.dumps([CHAT, CHAT]), {}, [CHAT, CHAT]),
    "messages in Parquet": ("a.parquet", table(messages=[CHAT]), {}, [CHAT]),
    "messages beside a text that is null": ("a.jsonl", lines({"text": None, "messages": CHAT}), {}, [CHAT]),
    "messages in parts": (
        "a.jsonl",
        lines(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]}
        ),
        {},
        [[SAID]],
    ),
    "from and value": (
        "a.json",
        json.dumps([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}]),
        {},
        [CHAT],
    ),
    "a call of a tool": (
        "a.jsonl",
        lines({"messages": [SAID, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]}),
        {},
        [[SAID, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]],
    ),
    "token ids": (
        "a.jsonl",
        lines({"input_ids": [3, 1, 2]}, {"input_ids": []}, {"input_ids": [5]}),
        {},
        [[3, 1, 2], [5]],
    ),
    "token ids in Parquet": ("a.parquet", table(input_ids=[[3, 1], [2]]), {}, [[3, 1], [2]]),
    "token ids under another name": ("a.jsonl", lines({"ids": [3, 1]}), {"field": "ids"}, [[3, 1]]),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_text_is_read_rightly(tmp_path, case):
    name, content, dataset, documents = ODD[case]
    found, about = fetched(tmp_path, {name: content}, **dataset)
    assert found == documents
    assert about["documents"] == len(documents)


def test_several_files_are_one_dataset_in_their_order(tmp_path):
    files = {"b.jsonl": texts("One.", "Two."), "a.txt": "Three.", "c.csv": "text\nFour.\n"}
    assert fetched(tmp_path, files)[0] == ["One.", "Two.", "Three.", "Four."]


def test_what_is_left_out_or_replaced_is_counted_and_said(tmp_path):
    content = '{"text": null}\n{"text": "a\\ud83d"}\n{"text": ""}\n{"text": null}\n{"text": "\\udc00\\udc00"}\n'
    _, about = fetched(tmp_path, {"a.jsonl": content})
    assert {key: about[key] for key in ("documents", "null_rows", "empty_texts", "surrogates")} == {
        "documents": 3,
        "null_rows": 2,
        "empty_texts": 1,
        "surrogates": 3,
    }
    chosen = settings.Dataset(path=str(tmp_path / "a.jsonl")).source_settings
    said = fetch_data(tmp_path / "b.parquet", "mine", chosen, "code")
    expected = "3 documents, 2 rows without a value left out, 1 empty texts, 3 halves of characters replaced, sha256 "
    assert said.startswith(expected)


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
