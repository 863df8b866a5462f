"""Texts as people really have them, odd but right: what is read of each stands in the table.

Nothing in it comes from the readers.
"""

import bz2
import gzip
import json

import pyarrow as arrow
import pytest
from written import CHAT, SAID, fetched, lines, packed, table, texts

from gramprune.experiment import settings
from gramprune.stages.texts import fetch_data

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
