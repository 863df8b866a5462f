"""What bad input gets: one sentence that names the setting or file, exit code 1, no traceback, nothing lost."""

import shutil

import pytest
from conftest import Clone, changed, copied, save_llama


@pytest.fixture(scope="module")
def clone(clone, tmp_path_factory) -> Clone:
    """A copy: these tests damage files, and mending them leaves other dates."""
    return copied(clone.folder, tmp_path_factory.mktemp("copy"))


def run(config, number=0):
    return config["runs"][number]


def shorten(path, texts):
    path.write_text("Too short.")
    return path


BEFORE_ANY_JOB = {
    "unknown key": (
        lambda c: c.update(calibraton={}),
        "config: there is no setting 'calibraton'; did you mean 'calibration'?",
    ),
    "unknown key of a run": (lambda c: run(c).update(sparsty=0.5), "runs[0]: there is no setting 'sparsty'"),
    "unknown method": (
        lambda c: run(c).update(mask="lottery"),
        "config: runs[0].mask: there is no method 'lottery'; Known: admm, alps, magnitude, mrp, ria, sparsegpt, wanda.",
    ),
    "misspelt method": (lambda c: run(c).update(mask="wnda"), "did you mean 'wanda'?"),
    "option of another method": (
        lambda c: run(c).update(update={"method": "none", "iterations": 3}),
        "config: runs[0].update: there is no setting 'iterations'",
    ),
    "N:M that does not divide": (
        lambda c: run(c).update(sparsity="2:5"),
        "run 'chain': in the model tiny, block 0, self_attn.q_proj has 32 input columns, which the pattern 2:5",
    ),
    "sparsity 0": (lambda c: run(c).update(sparsity=0), "config: runs[0].sparsity: sparsity 0 is not a fraction"),
    "sparsity 1": (lambda c: run(c).update(sparsity=1), "sparsity 1 is not a fraction"),
    "sparsity 1.2": (lambda c: run(c).update(sparsity=1.2), "sparsity 1.2 is not a fraction"),
    "sparsity abc": (lambda c: run(c).update(sparsity="abc"), "sparsity 'abc' is not a fraction"),
    "joint update of a mask that makes no weights": (
        lambda c: run(c).update(update="joint"),
        "mask 'wanda' makes none",
    ),
    "target that nothing moves towards": (
        lambda c: run(c, 4).update(target="dense"),
        "config: runs[4]: target 'dense' moves weights, but update 'none' keeps them",
    ),
    "missing model folder": (
        lambda c: c.update(model="./nowhere"),
        "model: the folder ./nowhere does not exist",
    ),
    "missing model folder that looks like none": (
        lambda c: c.update(model="models/of/mine"),
        "model: the folder models/of/mine does not exist",
    ),
    "missing text": (
        lambda c: c["datasets"].update(calibration={"path": "nowhere.txt"}),
        "datasets.calibration.path: the file nowhere.txt does not exist",
    ),
    "too little text for the samples": (
        lambda c: c["calibration"].update(samples=10**6),
        "too little text for the 64,000,000 tokens that are asked for",
    ),
    "unknown dataset": (
        lambda c: c["calibration"].update(dataset="calibratoin"),
        "calibration.dataset: there is no dataset 'calibratoin'; did you mean 'calibration'?",
    ),
    "sequence longer than the context": (
        lambda c: c["calibration"].update(length=256),
        "config: calibration.length is 256, but the model tiny takes 128 tokens at most",
    ),
    "two runs with one name": (
        lambda c: run(c).update(name="joint"),
        "runs: two have the name 'joint'",
    ),
    "exclude that matches nothing": (
        lambda c: c.update(exclude=["*.gate"]),
        "config: exclude: '*.gate' matches no linear of the model tiny",
    ),
    "a GPU that is not a device's name": (lambda c: c.update(device="gpu"), "config: device is 'gpu'"),
}


def assert_one_sentence(done, sentence):
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert sentence in said, said[-3000:]
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("gramprune:")]
    assert len(set(lines)) == 1 and sentence in lines[0]


@pytest.mark.parametrize("mistake", BEFORE_ANY_JOB)
def test_a_wrong_setting_is_said_in_one_sentence_before_any_job(clone, config, mistake):
    change, sentence = BEFORE_ANY_JOB[mistake]
    done = clone.snakemake(config=changed(config, change))
    assert_one_sentence(done, sentence)
    assert "rule" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "[]", "not json", '{"key": 1}'])
def test_a_damaged_layout_is_made_again(clone, damage):
    path = clone.folder / "results/tiny/layout.json"
    before = path.read_text()
    path.write_text(damage)
    assert not clone.planned()
    assert path.read_text() == before


@pytest.mark.slow
def test_text_with_too_few_windows_is_counted(clone, config, tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "A short document."}\n' * 500)
    new = changed(config, lambda c: (c["datasets"].update(calibration={"path": str(path)}), c.update(results="few")))
    new["calibration"]["pack"] = "never"
    done = clone.snakemake("few/tiny/calibration.safetensors", config=new)
    assert_one_sentence(done, "the dataset calibration has 500 documents with 0 windows of 64 tokens")


@pytest.fixture
def redo(clone):
    """Put a file in an artifact's place, and ask for what is made from it."""
    put_back = []

    def ask(artifact, content, target):
        path, made = clone.folder / "results/tiny" / artifact, clone.folder / "results/tiny" / target
        for file in (path, made):
            put_back.append((file, file.read_bytes()))
        path.write_bytes(content)
        done = clone.snakemake(str(made.relative_to(clone.folder)), "--forcerun", "update", "--rerun-triggers", "mtime")
        return path, done

    yield ask
    for file, content in put_back:
        file.write_bytes(content)
    clone.run("--touch")


def test_a_truncated_artifact_is_refused_and_left_alone(clone, redo):
    whole = (clone.folder / "results/tiny/dense/block_002/gram.safetensors").read_bytes()
    path, done = redo("dense/block_002/gram.safetensors", whole[:-10], "apart/block_002/weights.safetensors")
    assert_one_sentence(done, f"{path.relative_to(clone.folder)} is {len(whole) - 10:,} bytes long")
    assert path.read_bytes() == whole[:-10]


@pytest.mark.slow
def test_an_artifact_of_another_model_is_refused_with_both_values(clone, config, tokenizer, redo, tmp_path):
    other = tmp_path / "tiny"
    save_llama(other, seed=1)
    tokenizer.save_pretrained(other)
    new = changed(config, lambda c: c.update(model=str(other), results="other"))
    clone.run("other/tiny/dense/block_000/gram.safetensors", config=new)
    foreign = (clone.folder / "other/tiny/dense/block_000/gram.safetensors").read_bytes()
    path, done = redo("dense/block_000/gram.safetensors", foreign, "apart/block_000/weights.safetensors")
    assert_one_sentence(done, f"{path.relative_to(clone.folder)} was made for model '")
    assert "is expected here" in done.stdout + done.stderr


@pytest.mark.slow
def test_damaged_weights_are_refused_by_assembly(clone):
    import json

    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = clone.folder / "results/tiny/apart/block_001/weights.safetensors"
    before = path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = "mlp.up_proj.weight"
    tensors[name][tensors[name] == 0] = 0.5  # one matrix is dense again
    save_file(tensors, path, metadata)
    folder = clone.folder / "results/tiny/apart/checkpoint"
    recipe = (folder / "gramprune.json").read_text()
    try:
        arguments = ("--forcerun", "assemble", "--rerun-triggers", "mtime")
        done = clone.snakemake("results/tiny/apart/checkpoint/gramprune.json", *arguments)
        assert_one_sentence(done, "block 1, mlp.up_proj: 0 of 1,536 weights are zero in the checkpoint")
        assert not list(folder.parent.glob(".checkpoint*"))
    finally:
        path.write_bytes(before)
        clone.run("results/tiny/apart/checkpoint/gramprune.json")
        clone.run("--touch")
    assert json.loads((folder / "gramprune.json").read_text()) == json.loads(recipe)


@pytest.mark.slow
def test_activations_that_are_not_finite_are_said_with_block_and_setting(clone, config, tiny_model, tmp_path):
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "loud"
    shutil.copytree(tiny_model, folder)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        if "model.layers.1.mlp.down_proj.weight" in tensors:
            tensors["model.layers.1.mlp.down_proj.weight"].fill_(torch.finfo(torch.bfloat16).max)
            save_file(tensors, path, metadata)
    new = changed(config, lambda c: c.update(model=str(folder), results="loud"))
    done = clone.snakemake("loud/loud/dense/block_002/gram.safetensors", config=new)
    assert_one_sentence(done, "block 2: the hidden states that enter it hold NaN or infinite values")
