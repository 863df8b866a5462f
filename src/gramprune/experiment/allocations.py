"""The file that an allocation may be: fractions of zeros by the keys of a sparsity that is a mapping."""

from __future__ import annotations

from pathlib import Path

from gramprune.errors import GrampruneError
from gramprune.experiment import configfile, patterns
from gramprune.pruning.sparsity import Pattern


def from_file(path: Path | str, blocks: list[dict[str, float]]) -> list[dict[str, float]]:
    """By block and linear, the fractions that a file gives to those that have one.

    blocks: the fractions that they have; those of linears that no key of the file fits stay.
    Raises GrampruneError, naming the file, if it cannot be read, or a key fits nothing or gives no fraction.
    """
    given = {str(key): value for key, value in configfile.read(path).items()}
    for key, value in given.items():
        try:
            right = not Pattern.parse(value).group
        except GrampruneError:
            right = False
        if not right:
            raise GrampruneError(
                f"{path}: {key} is {value!r}; expected a fraction between 0 and 1: what is N:M or dense says the run's "
                "`sparsity`."
            )
    if not given:
        raise GrampruneError(f"{path} gives no fraction; expected lines such as `block 0: 0.5`.")
    kept = {"default": patterns.DENSE, **given}
    try:
        patterns.check(kept)
    except ValueError as error:
        raise GrampruneError(f"{path}: {error}.") from error
    names = [list(block) for block in blocks]
    if wrong := patterns.unsettled(kept, names):
        raise GrampruneError(f"{path}: {wrong}")
    found = []
    for number, block in enumerate(blocks):
        values = patterns.by_linear(kept, number, len(blocks), block)
        found.append({name: block[name] if values[name] == patterns.DENSE else float(values[name]) for name in block})
    return found
