"""The golden figures: every method gives what is on record, and a change says which figures moved, and by how much."""

import pytest
from golden import measure


@pytest.mark.slow
@pytest.mark.bits
def test_every_method_gives_the_figures_on_record():
    moved = measure.differences(measure.on_record(), list(measure.measure()))
    assert not moved, "\n".join([*moved, "If they are meant to move: make golden accept=yes"])


def test_what_has_moved_is_said_with_old_new_and_by_how_much():
    old = measure.on_record()
    new = [dict(row) for row in old]
    new[0]["perplexity"] = str(1.0001 * float(old[0]["perplexity"]))
    new[1]["layer_error"] = str(1.0000001 * float(old[1]["layer_error"]))
    new[2]["zeros"] = str(int(old[2]["zeros"]) + 1)
    new[3]["update"] = "another"
    perplexity, zeros, gone, come = measure.differences(old, new)
    assert perplexity.startswith(f"dense - - - - - -: perplexity {old[0]['perplexity']} -> ")
    assert perplexity.endswith("(+1.00e-04)")
    assert zeros.endswith(f"zeros {old[2]['zeros']} -> {new[2]['zeros']} (+1.09e-04)")
    assert (gone, come) == (f"{measure.name_of(old[3])}: gone", f"{measure.name_of(new[3])}: new")
