"""From documents to the tokens of one model: conversations by its chat template, and what stands before every window.

A model that was trained with a token for the beginning (BOS) wants it in front of whatever it sees; without it some,
such as Gemma, have several times the perplexity. So windows of such a model begin with it. Whether a model is one is
seen from its tokenizer, which then puts the token in front of any text.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gramprune.errors import GrampruneError, first_line
from gramprune.text.read import LONGEST, NO_TEMPLATE, SURROGATE
from gramprune.text.store import Documents

SHORT = "Hello there."


class Tokens:
    """Documents as tokens of a tokenizer.

    bos: "auto" puts before windows what the tokenizer puts in front of texts, but nothing before ids that are given;
    "always" does so too, and takes the BOS token where that is nothing; "never" puts nothing there.
    separator: between documents that are joined; by default an empty line for perplexity, EOS for packing, and nothing
    between conversations and ids.
    Raises GrampruneError for "always" where there is no such token, and for conversations without a chat template.
    """

    def __init__(self, documents: Documents, tokenizer: Any, vocabulary: int, bos: str, separator: str | None):
        self.documents, self.tokenizer, self.vocabulary = documents, tokenizer, vocabulary
        self.separator = separator
        self._where = f"the dataset {documents.about['dataset']}"
        self.front: list[int] = [] if documents.kind == "input_ids" and bos == "auto" else front(tokenizer, bos)
        """What stands before every window."""
        own = [self.tokenizer.bos_token] if bos == "never" else self.tokenizer.convert_ids_to_tokens(self.front)
        self._own = "".join(filter(None, own))  # not once more at the beginning of a document

    def encode(self, document: Any) -> list[int]:
        """The tokens of a document or a piece of one, without what stands before windows."""
        return self._given(document) if self.documents.kind == "input_ids" else self._ids(self._text(document))

    def stream(self) -> Iterator[list[int]]:
        """The tokens of all documents, joined by the separator, so many at a time as are tokenised at once."""
        between = self.separator
        if between is None:
            between = "\n\n" if self.documents.kind == "text" else ""
        if self.documents.kind == "input_ids":
            joint = self._ids(between) if between else []
            for number, (begins, ids) in enumerate(self.documents.rows()):
                yield (joint if begins and number else []) + self._given(ids)
            return
        waiting: list[str] = []
        size = 0
        for number, (begins, row) in enumerate(self.documents.rows()):
            text = (between if number else "") + self._text(row) if begins else row
            bytes_ = len(text.encode())
            if waiting and size + bytes_ > LONGEST:
                yield self._ids("".join(waiting))
                waiting, size = [], 0
            waiting.append(text)
            size += bytes_
        yield self._ids("".join(waiting))

    def end(self) -> list[int]:
        """What is put behind every document where they are packed."""
        if self.separator is not None:
            return self._ids(self.separator)
        if self.documents.kind == "messages":  # the template says where a conversation ends
            return []
        eos = self.tokenizer.eos_token_id
        return self._ids("\n\n") if eos is None else [eos]

    def _text(self, document: str) -> str:
        """A document as text."""
        text = self._rendered(document) if self.documents.kind == "messages" else document
        return text.removeprefix(self._own)

    def _rendered(self, conversation: str) -> str:
        """A conversation by the tokenizer's chat template."""
        if not self.tokenizer.chat_template:
            raise GrampruneError(
                f"{self._where} holds conversations, but the model's tokenizer has no chat template; {NO_TEMPLATE}."
            )
        try:
            text = self.tokenizer.apply_chat_template(json.loads(conversation), tokenize=False)
        except Exception as error:  # a template raises what it likes
            raise GrampruneError(
                f"{self._where}: the tokenizer's chat template refuses the conversation {conversation[:80]}…: "
                f"{first_line(error)}"
            ) from error
        return SURROGATE.sub("\ufffd", text)

    def _ids(self, text: str) -> list[int]:
        return self._checked(
            encode(self.tokenizer, text), "its tokenizer is another model's, or has tokens added that have no embedding"
        )

    def _given(self, ids: list[int]) -> list[int]:
        own = len(self.front) if self.front and ids[: len(self.front)] == self.front else 0
        return self._checked(ids[own:], "they are another tokenizer's; give this model's, or text")

    def _checked(self, ids: list[int], otherwise: str) -> list[int]:
        if (largest := max(ids, default=0)) >= self.vocabulary:
            raise GrampruneError(
                f"{self._where} has the token id {largest:,}, but the model's vocabulary ends at "
                f"{self.vocabulary - 1:,}: {otherwise}."
            )
        return ids


def encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The tokens of a text of any length; with those that the tokenizer puts around it, if `special`."""
    ids = tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    if len(text) > LONGEST // 4:
        with suppress(AttributeError, OSError):  # other systems have no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)  # else what tokenizers free stays in pieces: 100 MiB more with every text
    return ids


def front(tokenizer: Any, bos: str) -> list[int]:
    """What stands before every window, by the setting `bos`: usually BOS or nothing, two tokens for a few families."""
    if bos == "never":
        return []
    plain, whole = encode(tokenizer, SHORT), encode(tokenizer, SHORT, special=True)
    own = next((whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), [])
    if own or bos == "auto":
        return own
    if tokenizer.bos_token_id is None:
        raise GrampruneError("bos is 'always', but the model's tokenizer has no BOS token; set it to auto or never.")
    return [tokenizer.bos_token_id]
