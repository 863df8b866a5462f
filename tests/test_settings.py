"""The settings are the single source: what is generated from them has not drifted, what we ship is valid."""

import inspect
import json
import re
import tomllib

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator
from problems import assert_sentence

import gramprune as gp
from gramprune.experiment import options, reference, settings
from gramprune.pruning import allocation, joint, masks, methods, refine, updates
from gramprune.pruning.masks import mrp

CONFIGS = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("place", reference.GENERATED)
def test_generated_files_have_not_drifted(place):
    assert (ROOT / place).read_text() == reference.GENERATED[place](), "run: python -m gramprune.experiment.reference"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid_for_us_and_for_editors(path):
    content = yaml.safe_load(path.read_text())
    settings.load(content)
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(content)] == []


def test_the_conda_environment_has_the_versions_of_the_constraints():
    pins = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]]
    conda = yaml.safe_load((ROOT / "workflow/envs/gramprune.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == [f"{name}=={pins[name]}" for name in direct]


def test_no_registry_is_named_in_what_installs():
    for name in ("constraints.txt", "pyproject.toml", "Makefile", "workflow/envs/gramprune.yaml"):
        assert "://" not in (ROOT / name).read_text()


def test_runs_with_the_same_mask_settings_share_its_file():
    first = settings.Run(sparsity=0.5, mask="wanda", update="admm")
    second = settings.Run(sparsity=0.5, mask={"method": "wanda"}, propagation="dense")
    other = settings.Run(sparsity=0.5, mask={"method": "admm", "iterations": 30}, update="joint")
    assert first.mask_slug == second.mask_slug == "wanda_0.5_row"
    assert re.fullmatch(r"admm_0\.5_row_[0-9a-f]{8}", other.mask_slug)
    assert first.name == "wanda-admm-0.5"


def test_the_file_names_of_masks_tell_apart_what_differs():
    usual = {"sparsity": "2:4", "mask": "wanda", "update": "admm"}
    slugs = {
        "wanda_2of4": {},
        "wanda_2of4+sparseswaps": {"refine": "sparseswaps"},
        "wanda_2of4+swaps-reoptimised": {"refine": {"method": "swaps-reoptimised", "damping": 0.01}},
        "wanda_2of4_float64": {"precision": "float64"},
        "wanda_2of4_float64_to-dense": {"precision": "float64", "target": "dense"},
    }
    for slug, changes in slugs.items():
        assert settings.Run(**usual, **changes).final_mask == slug
    pulled = settings.Run(**usual, target={"method": "dense", "pull": 1.0}, refine={"method": "dsnot", "cycles": 9})
    assert re.fullmatch(r"wanda_2of4_to-dense_[0-9a-f]{8}\+dsnot_[0-9a-f]{8}", pulled.final_mask)
    assert pulled.at(0, 1, (), dense_inputs=True).mask_slug == "wanda_2of4"
    assert pulled.name == "wanda-dsnot-admm-2of4"


RUN = {"sparsity": 0.5, "mask": "wanda"}
MISTAKES = {
    "update 'joint' keeps weights that belong to the mask as it was selected, but refine 'sparseswaps' changes it": {
        "mask": "admm",
        "refine": "sparseswaps",
        "update": "joint",
    },
    "update 'joint' keeps the weights of a mask method that makes weights, but mask 'ria' makes none": {
        "mask": "ria",
        "update": "joint",
    },
    "target 'dense' makes up for what the pruned blocks before have changed, but with propagation 'dense' every": {
        "update": "admm",
        "propagation": "dense",
        "target": "dense",
    },
    "target 'dense' moves weights, but update 'none' keeps them as they were": {"target": "dense"},
    "runs[0].target: there is no setting 'pul'; did you mean 'pull'?": {"target": {"method": "dense", "pul": 1}},
    "runs[0].target.pull is 0; expected: greater than 0.": {"target": {"method": "dense", "pull": 0}},
    "runs[0].target: there is no method 'densely'; did you mean 'dense'?": {"target": "densely"},
    "runs[0].refine.max_swaps is 0; expected: greater than 0.": {"refine": {"method": "sparseswaps", "max_swaps": 0}},
    "runs[0].refine.tolerance is inf; expected: a finite number.": {
        "refine": {"method": "sparseswaps", "tolerance": float("inf")}
    },
    "runs[0].refine: there is no method 'swaps'; did you mean 'sparseswaps'?": {"refine": "swaps"},
    "runs[0].update.damping is -1; expected: greater than or equal to 0.": {"update": {"method": "pcg", "damping": -1}},
    "mrp's solution 'M' compares all patterns of a group, but sparsity 0.5 has no groups; use N:M, or solution 'S'": {
        "mask": {"method": "mrp", "solution": "M"}
    },
    "mrp's solution 'M' compares 256 patterns of a group at most, but 8:16 has 12,870; use a smaller group, or": {
        "sparsity": "8:16",
        "mask": "mrp",
    },
    "runs[0].update.solution is 'auto'; Known: M, S.": {"update": {"method": "mrp", "solution": "auto"}},
    "runs[0].precision is 'float16'; did you mean 'float64'?": {"precision": "float16"},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(sentence):
    config = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"runs": [RUN | MISTAKES[sentence]]}
    with pytest.raises(gp.GrampruneError) as error:
        settings.load(config)
    assert_sentence(error, "config: runs[0]", sentence)


def test_a_dataset_may_have_the_name_of_a_method():
    config = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"datasets": {"dense": {"pth": "a.txt"}}}
    with pytest.raises(gp.GrampruneError) as error:
        settings.load(config)
    assert_sentence(error, "config: datasets.dense: there is no setting 'pth'; did you mean 'path'?")


FUNCTIONS = {"mask": (masks, "select"), "refine": (refine, "refine"), "update": (updates, "update")}
OPTIONS = [
    ("joint" if key == "mask" and options.names_of(section)[0] in options.JOINT else key, section)
    for key, sections in options.METHODS.items()
    for section in sections
    if key in FUNCTIONS and section is not options.Joint
]


@pytest.mark.parametrize("kind, section", OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_every_option_is_a_parameter_of_the_method_with_the_same_default(kind, section):
    (name,) = options.names_of(section)
    package, function = (joint, "prune") if kind == "joint" else FUNCTIONS[kind]
    parameters = inspect.signature(methods.load(package, name, function)).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert section(method=name).model_dump(exclude={"method"}) == defaults


def test_every_method_of_the_library_can_be_chosen():
    for key, (package, _) in FUNCTIONS.items():
        chosen = {name for section in options.METHODS[key] for name in options.names_of(section)}
        assert chosen - {"joint"} == {*methods.names(package)} | ({*methods.names(joint)} if key == "mask" else set())
    allocations = {name for section in options.METHODS["allocation"] for name in options.names_of(section)}
    assert allocations - {"uniform", "file"} == {*allocation.names()}
    assert set(methods.names(joint)) == options.JOINT
    assert mrp.LIMIT == options.MRP_PATTERNS
    assert inspect.signature(gp.retarget_weight).parameters["pull"].default == options.DenseTarget(method="dense").pull


def test_a_models_name_is_the_last_part_of_its_source():
    names = [
        settings.Model.model_validate(source).name for source in ("demo", "org/Llama-3.2-1B", "./models/my model/")
    ]
    assert names == ["demo", "Llama-3.2-1B", "my-model"]
