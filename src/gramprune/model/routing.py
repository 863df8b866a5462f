"""Experts that all tokens go to: what routers choose by is changed for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

CHOSEN = re.compile(r"(moe_)?top_?k(_experts)?|num_experts_per_tok(en)?")
"""What modules and configs call the number of experts that a token goes to."""


@contextmanager
def all_experts(block: nn.Module, experts: int) -> Iterator[None]:
    """Until the end of the `with`, every token goes to all experts of a block, as far as its routers go by a number.

    A block with one or none stays as it is. What a block gives is another thing then; what enters its linears is what
    each expert makes of every token.
    """
    owners = {id(owner): owner for module in block.modules() for owner in (module, getattr(module, "config", None))}
    changed = []
    for owner in owners.values():
        for name, value in list(vars(owner).items()) if owner is not None else ():
            if experts > 1 and CHOSEN.fullmatch(name) and type(value) is int:
                changed.append((owner, name, value))
                setattr(owner, name, experts)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
