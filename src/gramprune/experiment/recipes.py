"""Recipes by name, for who does not want to choose: what a run's `recipe` stands for.

What methods reach and cost on small models is measured by `benchmarks/recipes.py` and stands in docs/methods.md.
"""

from __future__ import annotations

from typing import Any

from gramprune.experiment import patterns

RECIPES: dict[str, dict[str, Any]] = {
    "best": {
        "mask": "alps",
        "update": "exact",
        "target": "dense",
        "granularity": "matrix",
        "reconstruct": "block",
    },
    "fast": {"mask": "admm", "update": {"method": "pcg", "iterations": 10}},
    "magnitude": {"mask": "magnitude"},
    "wanda": {"mask": "wanda"},
    "ria": {"mask": "ria"},
    "sparsegpt": {"mask": "sparsegpt", "update": "joint"},
    "mrp": {"mask": "mrp", "update": "mrp"},
    "admm": {"mask": "admm", "update": "joint"},
    "alps": {"mask": "alps", "update": "joint"},
    "sparseswaps": {"mask": "wanda", "refine": "sparseswaps"},
}
"""Keys of a run; keys that the run has itself stand before them."""

SAID = {
    "best": "ALPS's mask, the optimum under it with the dense model as target, and blocks trained; minutes each",
    "fast": "ADMM's mask and a few conjugate gradients towards its optimum; seconds per block",
}


def filled(run: dict[str, Any]) -> dict[str, Any]:
    """A run with what its recipe says, where it says nothing itself; N:M has no granularity."""
    recipe = RECIPES.get(run.get("recipe", ""), {}) if isinstance(run.get("recipe"), str) else {}
    grouped = patterns.grouped(run.get("sparsity"))
    return {**{key: value for key, value in recipe.items() if not (grouped and key == "granularity")}, **run}
