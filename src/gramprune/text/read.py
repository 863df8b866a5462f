"""The documents of a dataset: from the demo, local files or the hub, as texts, conversations or token ids.

Which of the three a dataset holds is seen from its first document. A conversation is a list of messages, each a role
and a content; it becomes text by the chat template of a model's tokenizer, later.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError, first_line
from gramprune.text import formats
from gramprune.text.formats import Row

Document = str | Iterator[str] | list[int]
"""A text, whole or in pieces; the messages of a conversation as JSON; or token ids."""

LONGEST = 1 << 21
"""Bytes of text that are tokenised at once; tokenizers take up to 300 times as much memory for it. A document up to
here has the tokens of the whole; a longer one is tokenised in pieces, cut between words."""
FIELDS = ("text", "messages", "conversations", "input_ids")
"""Where documents are by default: the first of these that the first row has."""
ROLES = {  # of messages that say `from` and `value`
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
HOLDS = {"text": "text", "messages": "a conversation", "input_ids": "token ids"}
REMEDY = " Check its name and your network, or give a local file as `path`."
NO_TEMPLATE = "take an instruct model, add its chat_template.jinja, or set the dataset's `field` to one that holds text"
SURROGATE = re.compile("[\ud800-\udfff]")


def documents(dataset: dict[str, Any], name: str, noted: Counter[str]) -> Iterator[tuple[str, Document]]:
    """Kind ("text", "messages" or "input_ids") and content of every document, in order.

    dataset: as in the settings. noted: counts, while documents are taken, rows without one (`null_rows`,
    `empty_rows`), empty texts, which are documents (`empty_texts`), and halves of surrogate pairs, which no encoding
    has and which become U+FFFD (`surrogates`).
    Raises GrampruneError, naming file, line and field, for what is no document or of another kind than the first.
    """
    limit, field, kind, number = dataset.get("documents"), dataset.get("field"), None, 0
    for where, row in _rows(dataset, name):
        if number == limit:
            return
        place = ""
        if isinstance(row, dict):
            field = field or next((field for field in FIELDS if row.get(field) is not None), None)
            row = _selected(row, field or next(filter(row.__contains__, FIELDS), FIELDS[0]), where)
            place = f" in the field {field!r}"
        elif dataset.get("field") and not isinstance(row, Iterator):
            raise GrampruneError(f"{where} has {_described(row)}; expected an object with the field {field!r}.")
        if row is None or row == []:
            noted["null_rows" if row is None else "empty_rows"] += 1
            continue
        try:
            found, document = _document(row, place, where, noted)
        except RecursionError as error:
            raise GrampruneError(f"{where} has lists in lists, too deep to be a document.") from error
        kind = kind or found
        if found != kind:
            raise GrampruneError(f"{where} has {HOLDS[found]}, but the rows before have {HOLDS[kind]}.")
        number += 1
        yield kind, document


def kind_of(dataset: dict[str, Any], name: str) -> str:
    """What the first document of every local file is. Raises GrampruneError for a file that has none, or no good one.

    It takes a moment: of each file only the beginning is read.
    """
    kinds = {}
    for path in paths_of(dataset):
        formats.check(path, name)
        first = next(documents({**dataset, "path": str(path)}, name, Counter()), None)
        if first is None:
            raise GrampruneError(f"dataset {name}: there is no document in {path}.")
        kinds[first[0]] = path
        if isinstance(first[1], Iterator):
            next(first[1], None)
    if len(kinds) > 1:
        raise GrampruneError(
            f"dataset {name}: "
            + ", but ".join(f"{path} has {HOLDS[kind]}" for kind, path in kinds.items())
            + "; make two datasets of them."
        )
    return next(iter(kinds))


def paths_of(dataset: dict[str, Any]) -> list[Path]:
    """The local files of a dataset."""
    paths = dataset.get("path") or []
    return [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]


def revision(dataset: dict[str, Any]) -> str | None:
    """The exact commit of a dataset on the hub; None for local text and for the library's own builders."""
    if not dataset.get("hub") or "/" not in dataset["hub"]:
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset["hub"], revision=dataset.get("revision")).sha
    except Exception as error:  # of a dozen kinds, as below
        raise GrampruneError(
            f"dataset {dataset['hub']} could not be found on the hub: {first_line(error)}{REMEDY}"
        ) from error


def _rows(dataset: dict[str, Any], name: str) -> Iterator[Row]:
    """Rows, with words for dataset, file and place before each."""
    if dataset.get("demo"):
        from gramprune.text import demo

        texts = demo.documents(heldout=dataset["demo"] == "heldout")
        return ((f"dataset {name}, document {number}", {"text": text}) for number, text in enumerate(texts, start=1))
    if dataset.get("path"):
        wanted = [dataset["field"]] if dataset.get("field") else FIELDS
        return chain.from_iterable(_placed(path, wanted, name) for path in paths_of(dataset))
    return _hub(dataset, name)


def _placed(path: Path, wanted: Iterable[str], name: str) -> Iterator[Row]:
    for where, row in formats.rows(path, tuple(wanted), name):
        yield f"dataset {name}: {path}, {where}", row


def _hub(dataset: dict[str, Any], name: str) -> Iterator[Row]:
    import datasets

    try:
        # Streaming: of C4's shards only as many documents are read as are asked for.
        rows = datasets.load_dataset(
            dataset["hub"],
            dataset.get("config"),
            data_files=dataset.get("files"),
            split=dataset["split"],
            revision=dataset.get("revision"),
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            yield f"dataset {name}: {dataset['hub']}, row {number}", row
    except GrampruneError:
        raise
    except Exception as error:  # the library raises a dozen kinds for a wrong name or a missing network
        raise GrampruneError(
            f"dataset {name}: {dataset['hub']} could not be fetched from the hub: {first_line(error)}{REMEDY}"
        ) from error


def _selected(row: dict[str, Any], field: str, where: str) -> Any:
    """The value of a field, `a.b` being b inside a; None where that, or what it is in, is null."""
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            has = _listed(row) or "none at all"
            raise GrampruneError(f"{where}: there is no field {field!r} but {has}; set the dataset's `field`.")
        value = value[part]
    return value


def _document(value: Any, place: str, where: str, noted: Counter[str]) -> tuple[str, Document]:
    """Kind and content of what a row holds."""
    if isinstance(value, str):
        noted["empty_texts"] += not value
        return "text", _encodable(value, noted)
    if isinstance(value, Iterator):
        return "text", value
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        messages = [_message(message, f"{where}, message {n}") for n, message in enumerate(value, start=1)]
        conversation = _encodable(json.dumps(messages, ensure_ascii=False), noted)
        if len(conversation) > LONGEST:
            raise GrampruneError(
                f"{where} has a conversation of {len(conversation):,} characters, more than the {LONGEST:,} that are "
                "tokenised at once; split it."
            )
        return "messages", conversation
    if isinstance(value, list) and all(type(token) is int for token in value):
        odd = next((token for token in value if not 0 <= token < 1 << 31), None)
        if odd is not None:
            raise GrampruneError(f"{where} has the token {odd}{place}; expected ids of a vocabulary, which begin at 0.")
        return "input_ids", value
    raise GrampruneError(f"{where} has {_described(value)}{place}; expected text, a list of messages, or token ids.")


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as chat templates take it: role and content, and what else it has, such as tool calls."""
    named = {key: value for key, value in message.items() if value is not None}  # Parquet fills with nulls
    if "from" in named and "role" not in named:
        named["role"], named["content"] = ROLES.get(str(named.pop("from"))), named.pop("value", None)
        if named["role"] is None:
            raise GrampruneError(f"{where} is from {message['from']!r}; expected one of {', '.join(ROLES)}.")
    content = named.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None and len(named) > 1:  # an assistant that calls a tool says nothing
        content = ""
    if not isinstance(named.get("role"), str) or not isinstance(content, str):
        found = _listed(f"{key}: {_described(value)}" for key, value in message.items()) or "nothing"
        raise GrampruneError(
            f"{where}: expected a `role` and a `content` (or `from` and `value`), both text; found {found}."
        )
    return {**named, "content": content}


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    found = part.get("type") if isinstance(part, dict) else _described(part)
    raise GrampruneError(f"{where} has a part of type {found!r}; only text can be given to a language model.")


def _encodable(text: str, noted: Counter[str]) -> str:
    """Text that can be encoded: half an emoji, as cut-off JSON has it, becomes U+FFFD."""
    if text.isascii():
        return text
    whole, count = SURROGATE.subn("\ufffd", text)
    noted["surrogates"] += count
    return whole


def _listed(names: Iterable[Any]) -> str:
    """Names as part of a sentence, whatever a file has for names: a few, short, on one line."""
    return ", ".join(SURROGATE.sub("\ufffd", " ".join(str(name).split()))[:60] for name in islice(names, 30))


def _described(value: Any) -> str:
    """The type of a value, in JSON's words."""
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}

    def name(value: Any) -> str:
        return names.get(type(value), "null" if value is None else type(value).__name__)

    if isinstance(value, list) and value:
        return f"a list of which each is {' or '.join(sorted({name(inner) for inner in value}))}"
    return name(value)
