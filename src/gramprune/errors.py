"""The one exception that stands for a user's mistake, and what its sentences are made from."""

from collections.abc import Iterable
from difflib import get_close_matches


class GrampruneError(Exception):
    """Something that the user can mend; its text is one sentence: what, found, expected, what to do.

    >>> gp.Pattern.parse("4:2")
    Traceback (most recent call last):
    gramprune.errors.GrampruneError: sparsity '4:2' is not N:M with 0 < N < M, such as '2:4'.
    """


def suggest(found: str, allowed: Iterable[str]) -> str:
    """The nearest of `allowed` and the whole list, as the end of an error's sentence."""
    allowed = sorted(allowed)
    meant = nearest(found, allowed)
    hint = f"did you mean {meant!r}? " if meant else ""
    return f"{hint}Known: {', '.join(allowed)}."


def nearest(found: str, allowed: Iterable[str]) -> str | None:
    """The word of `allowed` that is most like `found`, if one is."""
    folded = {word.lower(): word for word in allowed}
    words = get_close_matches(found.lower(), folded, n=1, cutoff=0.5)
    return folded[words[0]] if words else None


def shorter(value: object) -> str:
    """What was found somewhere, for a sentence: not all of it where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]} … ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """What another library's error says, as one sentence: its first line, or else its name."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = f"{first} {others[0]}" if first.endswith(":") and others else first
    return line if line.endswith(".") else f"{line}."
