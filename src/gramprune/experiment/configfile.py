"""A file of settings as text: what is wrong with it, with its line, before anything in it is taken for a setting.

Snakemake's own reader says neither file nor line, takes the last of two equal keys, and runs Python that stands in a
file with `__use_yte__`. So files are looked at here before it reads them, where it leaves us the time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from gramprune.errors import GrampruneError

MOST = 100_000  # values in a file, with those that it repeats by reference
SIXTIES = re.compile(r"[-+]?[0-9]+(:[0-9]{1,2})+")  # 2:4 is a time in YAML 1.1: 124 seconds
MAPPING, SEQUENCE = yaml.MappingNode, yaml.SequenceNode


def read(path: Path | str) -> dict[str, Any]:
    """The content of a file of settings, YAML or JSON. Nothing in it is run.

    Raises GrampruneError with one sentence that names the file, and the line where there is one.
    """
    return parsed(_text(Path(path)), path)


def parsed(text: str, path: Path | str) -> dict[str, Any]:
    """The content of a text of settings; `path` is what errors call it."""
    is_json = False
    with suppress(ValueError, RecursionError):
        is_json = isinstance(json.loads(text.removeprefix("\ufeff")), dict)
    if is_json:
        text = text.replace("\t", " ")  # JSON may be indented with tabs, the YAML that it is otherwise may not
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, MAPPING):
            raise GrampruneError(f"{path} holds no settings; expected lines such as `model: demo`.")
        _check_size(root, path)
        for node in _nodes(root):
            _check_keys(node, path)
            _check_number(node, path)
        content = yaml.load(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        explained = _explained(error, text.splitlines())
        raise GrampruneError(f"{path}, line {_line(error.problem_mark)}: {explained}.") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise GrampruneError(f"{path}, line {line}: a control character stands here; remove it.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # such as the date 2026-99-99
        raise GrampruneError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from error
    if "__use_yte__" in content:
        raise GrampruneError(
            f"{path}: with `__use_yte__` Snakemake runs Python that stands in the file; write the values themselves."
        )
    return content


def check_arguments(arguments: list[str]) -> None:
    """Ends Python with a sentence if a file that is given with --configfile cannot be read, as Snakemake would read it.

    Snakemake takes everything behind that option for a file, up to the next option: a target there too.
    """
    files: list[str] = []
    taken = False
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
            taken = len(option) > len("--config") and "--configfiles".startswith(option)
            files += [value] if taken and value else []
            taken &= not value
        elif taken:
            files.append(argument)
    for name in files:
        try:
            read(name)
        except GrampruneError as error:
            hint = "" if Path(name).exists() else " If it is a target, name it before --configfile."
            sys.exit(f"gramprune: {error}{hint}")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GrampruneError(f"{path} cannot be read: {error.strerror}; name a file of settings.") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise GrampruneError(f"{path}, line {line}: this is not UTF-8; save the file in that encoding.") from error


def _explained(error: yaml.MarkedYAMLError, lines: list[str]) -> str:
    """What PyYAML says, and what it mostly means."""
    said = " ".join(filter(None, (error.context, error.problem)))
    mark, began = error.problem_mark, error.context_mark or error.problem_mark
    if mark.line < len(lines) and "\t" in lines[mark.line]:
        return "a tab stands here; YAML is indented with spaces"
    if error.problem == "could not find expected ':'":
        return f"a colon is missing in {lines[began.line].strip()!r}"
    if error.problem == "mapping values are not allowed here":
        return "this is not valid YAML; a colon is missing in the line before, or a text with a colon wants quotes"
    if "expected ',' or" in said:
        return f"a comma or a closing bracket is missing behind what begins in line {_line(began)}"
    if "constructor" in said:
        return "tags such as `!!python` are not read here; write the value itself"
    return f"this is not valid YAML: {said}"


def _line(mark: Any) -> int:
    return mark.line + 1


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """All nodes of a document, each once."""
    seen: set[int] = set()
    queue = [root]
    while queue:
        node = queue.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            queue += _inside(node)


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, MAPPING):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SEQUENCE) else []


def _check_size(root: yaml.Node, path: Path | str) -> None:
    """Raises GrampruneError for references in a circle, or that make a small file as large as memory."""
    sizes: dict[int, int] = {}
    queue = [(root, False)]
    while queue:
        node, done = queue.pop()
        inside = _inside(node)
        if done:
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in inside)
        elif sizes.get(id(node)) == 0:
            raise GrampruneError(f"{path}, line {_line(node.start_mark)}: what begins here refers to itself.")
        elif id(node) not in sizes:
            sizes[id(node)] = 0  # under way
            queue += [(node, True), *((part, False) for part in inside)]
    if sizes[id(root)] > MOST:
        raise GrampruneError(f"{path}: with what it repeats it has {sizes[id(root)]:,} values, more than {MOST:,}.")


def _check_keys(node: yaml.Node, path: Path | str) -> None:
    """Raises GrampruneError for a key that stands twice in a mapping."""
    seen: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, MAPPING) else ():
        if not isinstance(key, yaml.ScalarNode):
            raise GrampruneError(f"{path}, line {_line(key.start_mark)}: a list or mapping stands in place of a name.")
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            raise GrampruneError(
                f"{path}, line {_line(key.start_mark)}: {key.value!r} is given twice, first in line {seen[key.value]}; "
                "keep one."
            )
        seen[key.value] = _line(key.start_mark)


def _check_number(node: yaml.Node, path: Path | str) -> None:
    """Raises GrampruneError for what YAML counts in sixties."""
    plain = isinstance(node, yaml.ScalarNode) and node.style is None and not node.tag.endswith(":str")
    if plain and SIXTIES.fullmatch(node.value):
        raise GrampruneError(
            f'{path}, line {_line(node.start_mark)}: put {node.value} in quotes, "{node.value}": without them YAML '
            "counts in sixties."
        )
