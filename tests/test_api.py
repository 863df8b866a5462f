"""The public names: what type checkers know of them is what there is, and the examples in their docstrings are true."""

import ast
import doctest
import inspect

import pytest
import torch
from conftest import ROOT

import gramprune as gp

FLAGS = doctest.ELLIPSIS


def run_examples(found: object, name: str) -> int:
    """Run the examples of a docstring and of what it holds; how many there were."""
    torch.manual_seed(0)
    runner, count = doctest.DocTestRunner(optionflags=FLAGS), 0
    for test in doctest.DocTestFinder(exclude_empty=True).find(found, name, globs={"gp": gp, "torch": torch}):
        said: list[str] = []
        assert not runner.run(test, out=said.append).failed, "".join(said)
        count += len(test.examples)
    return count


@pytest.mark.parametrize("name", gp.__all__)
def test_every_public_name_has_an_example_that_is_true(name):
    assert run_examples(getattr(gp, name), name)


def test_the_first_example_of_the_package_is_true():
    assert run_examples(inspect.getmodule(gp), "gramprune")


def test_type_checkers_know_the_names_that_there_are():
    stub = ast.parse((ROOT / "src/gramprune/__init__.pyi").read_text())
    known = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert known == gp._HOMES
    assert (ROOT / "src/gramprune/py.typed").exists()
