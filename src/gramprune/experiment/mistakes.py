"""A mistake in the configuration as one sentence, and what may stand in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic.fields import FieldInfo

from gramprune.errors import nearest, shorter, suggest
from gramprune.experiment.names import DEVICE, NAME
from gramprune.experiment.options import METHODS, Section, names_of

EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping with keys"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
    "too_short": "one entry at least",
    "string_too_long": "a shorter text",
    "invalid_key": "names, not numbers or the like, as keys",
}
NAMES = "letters without accents, digits, `.`, `_` and `-`, with a letter or digit first and no `.` last"
DEVICES = "auto, cpu, cuda, or one GPU by its number, such as cuda:0"


def sentence(error: Any, whole: type[Section]) -> str:
    """One sentence from pydantic's description of a mistake: the setting, what was found, what is expected.

    whole: the section that all others are in.
    """
    # pydantic puts the method's name into the place, behind the key that chooses it; nobody wrote it there.
    place = [part for key, part in zip(("", *error["loc"]), error["loc"], strict=False) if not _is_tag(key, part)]
    place = [part for part in place if part != "[key]" and not str(part).startswith("function-")]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        parent, _, key = where.rpartition(".")
        allowed = _allowed_keys(whole, error["loc"][:-1])
        return f"config: {parent + ': ' if parent else ''}there is no setting {shorter(key)}; {suggest(key, allowed)}"
    if kind == "union_tag_invalid":
        allowed = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"config: {where}: there is no method {context['tag']!r}; {suggest(context['tag'], allowed)}"
    if kind == "union_tag_not_found":
        return f"config: {where}: expected a method's name, or a mapping with `method`; found {shorter(found)}."
    if kind == "missing":
        return f"config: {where} is missing."
    if kind == "value_error":
        return f"config: {where + ': ' if where else ''}{str(context['error']).rstrip('.')}."
    if kind == "literal_error":
        allowed = [word.strip(" '") for word in re.split(r",| or ", context["expected"])]
        return f"config: {where} is {shorter(found)}; {suggest(str(found), allowed)}"
    expected = EXPECTED.get(kind, error["msg"].removeprefix("Input should be "))
    if place and place[-1] in METHODS and "mapping" in expected:
        expected = "a method's name, or a mapping with `method`"
    elif kind == "string_pattern_mismatch":
        expected = {NAME: NAMES, DEVICE: DEVICES}.get(context["pattern"], f"text that matches {context['pattern']}")
    elif kind == "string_type" and found is not None and not isinstance(found, list | dict):
        expected = "text; put it in quotes"
    said = "empty" if found is None else shorter(found)
    return f"config: {where + ' is ' if where else ''}{said}; expected: {expected}."


def causes(found: Sequence[Any], whole: type[Section]) -> list[Any]:
    """Pydantic's mistakes without missing keys that follow from others: misspelt ones, and what a recipe would give."""
    keys = [each["loc"] for each in found if each["type"] == "extra_forbidden"]
    meant = {(*place[:-1], nearest(str(place[-1]), _allowed_keys(whole, place[:-1]))) for place in keys}
    recipes = {each["loc"][:-1] for each in found if each["loc"][-1:] == ("recipe",)}
    return [
        each for each in found if each["type"] != "missing" or not (each["loc"] in meant or each["loc"][:-1] in recipes)
    ]


def _is_tag(key: Any, part: Any) -> bool:
    return any(part in names_of(method) for method in METHODS.get(key, ()))


def _allowed_keys(whole: type[Section], place: tuple) -> list[str]:
    """The keys of the section at a place in the configuration."""
    section: Any = whole
    for part in place:
        section = _inside(section, part)
    return list(visible_fields(section))


def _inside(annotation: Any, part: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        annotation = annotation.model_fields[part].annotation if part in annotation.model_fields else annotation
    sections = sections_in(annotation)
    tagged = [s for s in sections if "method" in s.model_fields and part in names_of(s)]
    found = tagged or sections
    return found[0] if len(found) == 1 else annotation


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that occur in a type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def visible_fields(section: type[Section]) -> dict[str, FieldInfo]:
    """The keys of a section that a user may write."""
    return {name: field for name, field in section.model_fields.items() if not _internal(field)}


def _internal(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("internal"))
