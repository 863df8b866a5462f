"""From documents to tokens: stored, read piece by piece, joined, by chat templates, with BOS in front, mixed."""

import json
import math
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import changed
from problems import assert_sentence
from safetensors import safe_open

from gramprune.errors import GrampruneError
from gramprune.experiment import settings
from gramprune.stages.calibrate import calibrate
from gramprune.stages.evaluate import evaluate_perplexity
from gramprune.stages.texts import fetch_data
from gramprune.text import read
from gramprune.text.store import Documents
from gramprune.text.tokens import Tokens

LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": f"What is {n} + {n}?"}, {"role": "assistant", "content": f"It is {2 * n}."}]
    for n in range(300)
]
BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def plain(documents):
    """A byte-level tokenizer that puts nothing in front."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(documents[:20], vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def llama(plain):
    """One that puts BOS in front, as Llama's and Gemma's do, with a chat template that has it too."""
    return _with(plain, "<s> $A", LLAMA)


def _with(tokenizer, processor: str, template: str | None = None):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    copied = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copied.post_processor = TemplateProcessing(single=processor, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    made = PreTrainedTokenizerFast(tokenizer_object=copied, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


def stored(folder, rows: list, name: str = "mine", **dataset) -> Documents:
    """Rows, or texts, as `fetch_data` stores them."""
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = settings.Dataset(path=str(folder / f"{name}.jsonl"), **dataset)
    fetch_data(folder / f"{name}.parquet", name, chosen.source_settings, "code")
    return Documents(folder / f"{name}.parquet")


def tokens(documents, tokenizer, bos="auto", separator=None, vocabulary=300) -> Tokens:
    return Tokens(documents, tokenizer, vocabulary, bos, separator)


def whole(tokenizer, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def joined(found: Tokens) -> list[int]:
    return [token for some in found.stream() for token in some]


def test_the_hubs_loading_code_reads_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One.", "", "Three.")))
    chosen = settings.Dataset(hub="json", files=str(tmp_path / "a.jsonl"), documents=2).source_settings
    assert list(read.documents(chosen, "mine", Counter())) == [("text", "One."), ("text", "")]


def test_documents_survive_their_parquet_file_whatever_their_length(tmp_path):
    generator = random.Random(0)
    texts = ["".join(generator.choices("ab é\n€😀", k=generator.choice((0, 3, 500, 40_000)))) for _ in range(200)]
    documents = stored(tmp_path, texts)
    assert list(documents) == texts  # one by one
    assert [documents[index] for index in (199, 0, 77)] == [texts[199], texts[0], texts[77]]
    other = stored(tmp_path, texts[:-1], "other")
    assert other.about["sha256"] != documents.about["sha256"]
    assert documents.about["documents"] == 200 and documents.about["bytes"] == sum(len(t.encode()) for t in texts)


def test_a_document_that_is_too_long_to_be_tokenised_at_once_counts_as_several(tmp_path):
    short, long = "short " * 99, "a word, and one more " * (read.LONGEST // 20)
    stored(tmp_path, [short, long, short])
    documents = Documents(tmp_path / "mine.parquet", piece=100_000)
    pieces = list(documents)
    assert pieces[0] == pieces[-1] == short and "".join(pieces[1:-1]) == long
    assert 15 < len(pieces) < 40 and all(len(piece) <= 100_000 for piece in pieces)
    assert all(piece.startswith(" ") for piece in pieces[2:-1])  # cut between words
    assert all(len(piece) <= read.LONGEST for piece in Documents(tmp_path / "mine.parquet", piece=1 << 40))


def test_a_damaged_parquet_file_is_named(tmp_path):
    stored(tmp_path, ["One."])
    path = tmp_path / "mine.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(GrampruneError) as error:
        Documents(path)
    assert_sentence(error, str(path), "Delete it to have it made again.")


def test_perplexitys_tokens_are_those_of_the_joined_text(tmp_path, documents, plain):
    texts = [documents[0], "", documents[1], documents[2]]
    found = stored(tmp_path, texts)
    assert joined(tokens(found, plain)) == whole(plain, "\n\n".join(texts))
    assert joined(tokens(found, plain, separator=" ")) == whole(plain, " ".join(texts))


@pytest.mark.slow
def test_a_text_that_is_tokenised_in_pieces_has_the_tokens_of_the_whole(tmp_path, documents, plain):
    text = "\n\n".join(documents)
    text *= math.ceil(2.2 * read.LONGEST / len(text))
    (tmp_path / "mine.txt").write_text(text)
    fetch_data(tmp_path / "mine.parquet", "mine", settings.Dataset(path=str(tmp_path / "mine.txt")).source_settings, "")
    found = list(tokens(Documents(tmp_path / "mine.parquet"), plain).stream())
    assert len(found) == 3
    assert [token for some in found for token in some] == whole(plain, text)


def test_what_stands_in_front_is_what_the_tokenizer_puts_there(tmp_path, plain, llama):
    found = stored(tmp_path, ["One."])
    assert tokens(found, plain).front == [] and tokens(found, llama).front == [BOS]
    assert tokens(found, _with(plain, "$A </s>")).front == []  # behind is not in front
    assert tokens(found, _with(plain, "</s> <s> $A")).front == [EOS, BOS]  # two, as GLM's
    assert tokens(found, plain, "always").front == tokens(found, llama, "always").front == [BOS]
    assert tokens(found, plain, "never").front == tokens(found, llama, "never").front == []


def test_bos_that_the_tokenizer_does_not_have_is_refused(tmp_path, plain):
    from transformers import PreTrainedTokenizerFast

    without = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer)
    with pytest.raises(GrampruneError) as error:
        tokens(stored(tmp_path, ["One."]), without, "always")
    assert_sentence(error, "bos is 'always', but the model's tokenizer has no BOS token")


def test_there_is_never_a_second_bos(tmp_path, llama):
    """Texts that were prepared for a family begin with its BOS, written out; so do conversations by their template."""
    found = tokens(stored(tmp_path, ["<s>One.", "<s>Two.", "Three."]), llama)
    assert [found.encode(text) for text in found.documents] == [whole(llama, t) for t in ("One.", "Two.", "Three.")]
    assert joined(found) == whole(llama, "One.\n\nTwo.\n\nThree.")
    for bos in ("auto", "always", "never"):
        chats = tokens(stored(tmp_path, [{"messages": chat} for chat in CHATS[:5]], "chats"), llama, bos)
        assert BOS not in joined(chats)
        assert all(BOS not in chats.encode(chat) for chat in chats.documents)


def test_without_a_bos_of_ones_own_a_text_is_left_as_it_is(tmp_path, plain):
    found = tokens(stored(tmp_path, ["<s>One.", "Two."]), plain)
    assert joined(found) == [BOS, *whole(plain, "One.\n\nTwo.")]


def test_conversations_are_read_by_the_chat_template(tmp_path, llama):
    found = tokens(stored(tmp_path, [{"messages": chat} for chat in CHATS[:3]]), llama)
    texts = [f"[user]What is {n} + {n}?</s>[assistant]It is {2 * n}.</s>" for n in range(3)]
    assert [found.encode(chat) for chat in found.documents] == [whole(llama, text) for text in texts]
    assert joined(found) == whole(llama, "".join(texts)) and found.end() == []
    assert joined(tokens(found.documents, llama, separator="\n")) == whole(llama, "\n".join(texts))


def test_conversations_without_a_template_or_against_it_are_refused(tmp_path, plain, llama):
    found = tokens(stored(tmp_path, [{"messages": CHATS[0]}]), plain)
    with pytest.raises(GrampruneError) as error:
        joined(found)
    assert_sentence(error, "the dataset mine holds conversations", "no chat template", "chat_template.jinja")
    system = [{"role": "system", "content": "Be brief."}, *CHATS[0]]
    with pytest.raises(GrampruneError) as error:
        joined(tokens(stored(tmp_path, [{"messages": system}], "other"), llama))
    assert_sentence(error, "the dataset other: the tokenizer's chat template refuses", "Be brief.", "No system role.")


def test_packed_documents_end_with_eos_unless_a_separator_is_set(tmp_path, plain):
    from transformers import PreTrainedTokenizerFast

    found = stored(tmp_path, ["One."])
    assert tokens(found, plain).end() == [EOS]
    assert tokens(found, plain, separator="\n").end() == whole(plain, "\n")
    assert tokens(found, plain, separator="").end() == []
    without = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer)
    assert tokens(found, without).end() == whole(plain, "\n\n")


def test_token_ids_are_used_as_they_are(tmp_path, llama):
    ids = [[BOS, 5, 6, 7], [BOS, *range(2, 299)] * 100]
    found = stored(tmp_path, [{"input_ids": row} for row in ids])
    assert list(found) == ids
    as_given = tokens(found, llama)
    assert as_given.front == [] and [as_given.encode(row) for row in found] == ids
    assert joined(as_given) == ids[0] + ids[1]
    always = tokens(found, llama, "always")
    assert always.front == [BOS] and always.encode(found[0]) == [5, 6, 7]
    with pytest.raises(GrampruneError) as error:
        joined(tokens(found, llama, vocabulary=298))
    assert_sentence(error, "the dataset mine has the token id 298", "vocabulary ends at 297", "another tokenizer's")


def test_text_whose_tokens_the_model_does_not_have_is_refused(tmp_path, plain):
    with pytest.raises(GrampruneError) as error:
        joined(tokens(stored(tmp_path, ["One."]), plain, vocabulary=20))
    assert_sentence(
        error, "the dataset mine has the token id", "vocabulary ends at 19", "its tokenizer is another model's"
    )


@pytest.mark.parametrize(
    ("samples", "weights", "shares"),
    [
        (128, {"c4": 0.7, "chats": 0.3}, {"c4": 90, "chats": 38}),
        (128, {"chats": 3, "c4": 7}, {"c4": 90, "chats": 38}),
        (10, {"a": 1, "b": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),
        (7, {"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 1, "b": 1, "c": 5}),
        (5, {"a": 2}, {"a": 5}),
    ],
)
def test_samples_are_divided_by_weight_to_the_last(samples, weights, shares):
    chosen = settings.Calibration(dataset=weights, samples=samples, length=8)
    assert chosen.shares == shares and sum(chosen.shares.values()) == samples


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ({}, "calibration.dataset"),
        ({"demo": 0}, "calibration.dataset"),
        ({"demo": -1, "mine": 1}, "calibration.dataset"),
        ({"demo": float("inf")}, "calibration.dataset"),
        ({"demo": 1, "mine": 1e-9}, "calibration: the weight of dataset 'mine' gives it none of 4 samples; raise it"),
        ({"demo": 1, "mien": 1}, "calibration.dataset: there is no dataset 'mien'; did you mean 'mine'?"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(dataset, sentence):
    content = {
        "model": "demo",
        "datasets": {"mine": {"path": "a.txt"}},
        "calibration": {"dataset": dataset, "samples": 4, "length": 8},
        "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 8}},
        "runs": [{"sparsity": 0.5, "mask": "wanda"}],
    }
    with pytest.raises(GrampruneError) as error:
        settings.load(content)
    assert_sentence(error, sentence)


@pytest.fixture(scope="module")
def chatty(tiny_model, llama, tmp_path_factory):
    """A model whose tokenizer puts BOS in front and has a chat template, and its manifest."""
    import shutil

    folder = tmp_path_factory.mktemp("chatty")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    llama.save_pretrained(folder)
    manifest = folder.with_suffix(".json")
    manifest.write_text(json.dumps({"folder": str(folder), "fingerprint": "fingerprint", "source": str(folder)}))
    return manifest


def calibrated(folder, manifest, shares: dict[str, int], length=24, seed=0, **more) -> tuple[torch.Tensor, dict, str]:
    """Tokens, provenance by dataset, and what the log says."""
    datasets = [{"dataset": name, "samples": samples, "separator": None} for name, samples in shares.items()]
    chosen = {"datasets": datasets, "length": length, "seed": seed, "pack": "auto", "bos": "auto", **more}
    said = calibrate(
        manifest, [folder / f"{name}.parquet" for name in shares], folder / "out.safetensors", chosen, "code"
    )
    with safe_open(folder / "out.safetensors", "pt") as file:
        return file.get_tensor("tokens"), json.loads(file.metadata()["gramprune"])["data"], said


def test_a_mixture_takes_its_samples_from_each_dataset_by_a_seed_of_its_own(tmp_path, documents, chatty, llama):
    stored(tmp_path, documents[:30], "texts")
    stored(tmp_path, [{"messages": chat} for chat in CHATS], "chats")
    found, about, said = calibrated(tmp_path, chatty, {"chats": 5, "texts": 7})
    assert found.shape == (12, 24) and (found[:, 0] == BOS).all() and (found[:, 1:] != BOS).all()
    spoken = " ".join(f"[user]What is {n} + {n}?</s>[assistant]It is {2 * n}.</s>" for n in range(300))
    assert [llama.decode(row[1:]) in spoken for row in found] == [True] * 5 + [False] * 7
    assert (about["texts"]["samples"], about["texts"]["packed"], about["texts"]["front"]) == (7, False, [BOS])
    assert (about["chats"]["samples"], about["chats"]["packed"], about["chats"]["used_documents"]) == (5, False, 5)
    assert "texts: 7 sequences of 24 tokens out of 7 documents, <s> before each" in said
    more, _, _ = calibrated(tmp_path, chatty, {"chats": 5, "texts": 8})
    assert more[:12].equal(found)  # what one dataset gives does not depend on how much another does
    other, _, _ = calibrated(tmp_path, chatty, {"chats": 5, "texts": 7}, seed=1)
    assert not other[:5].equal(found[:5]) and not other[5:].equal(found[5:])


def test_short_conversations_are_packed_and_it_is_said(tmp_path, chatty, llama):
    stored(tmp_path, [{"messages": chat} for chat in CHATS], "chats")
    found, about, said = calibrated(tmp_path, chatty, {"chats": 16}, length=100)
    assert about["chats"]["packed"] and ", packed, <s> before each" in said
    order = random.Random(0).sample(range(300), 300)
    text = "".join(f"[user]What is {n} + {n}?</s>[assistant]It is {2 * n}.</s>" for n in order)
    assert found[:, 1:].flatten().tolist() == whole(llama, text)[: 16 * 99]
    again, _, _ = calibrated(tmp_path, chatty, {"chats": 16}, length=100, pack="always")
    assert again.equal(found)
    with pytest.raises(GrampruneError) as error:
        calibrated(tmp_path, chatty, {"chats": 16}, length=100, pack="never")
    assert_sentence(error, "300 documents with 0 windows of 100 tokens", "set calibration.pack to auto")


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_perplexity_has_bos_in_front_of_every_window(tmp_path, documents, chatty, llama, bos):
    from transformers import AutoModelForCausalLM

    text = documents[3]
    stored(tmp_path, [text])
    chosen = {"dataset": "mine", "separator": None, "length": 33, "stride": 33, "windows": 4, "bos": bos}
    output = tmp_path / "out.json"
    arguments = {"code": "code", "device": "cpu", "batch_size": 3, "memory": "streamed"}
    evaluate_perplexity(chatty, None, tmp_path / "mine.parquet", output, {**chosen, "dtype": "float32"}, **arguments)
    result = json.loads(output.read_text())
    front = [BOS] if bos == "auto" else []
    size = 33 - len(front)
    ids = whole(llama, text)
    model = AutoModelForCausalLM.from_pretrained(chatty.with_suffix(""), dtype=torch.float32)
    losses = []
    for start in range(0, 4 * size, size):
        row = torch.tensor([front + ids[start : start + size]])
        with torch.no_grad():
            losses.append(float(model(input_ids=row, labels=row).loss))  # over the 32 tokens behind the first
    assert result["loss_per_window"] == pytest.approx(losses, rel=1e-5)
    assert result["predicted_tokens"] == 4 * 32 and result["front"] == front


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "chats"])
def test_snakemake_calibrates_on_mixtures_and_chats(clone, config, chatty, documents, tmp_path, name):
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))

    def use(c):
        c["model"] = {"source": str(chatty.with_suffix("")), "name": "chatty"}
        c["datasets"]["chats"] = {"path": str(tmp_path / "chats.jsonl")}
        c["calibration"]["dataset"] = {"mixture": {"calibration": 0.7, "chats": 0.3}, "chats": "chats"}[name]
        c["results"] = str(tmp_path / "results")

    clone.run(str(tmp_path / "results/chatty/calibration.safetensors"), config=changed(config, use))
    with safe_open(tmp_path / "results/chatty/calibration.safetensors", "pt") as file:
        data = json.loads(file.metadata()["gramprune"])["data"]
    expected = {"mixture": {"calibration": 8, "chats": 4}, "chats": {"chats": 12}}[name]
    assert {name: about["samples"] for name, about in data.items()} == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_text(tmp_path, documents, chatty):
    """30 MB as one document; tokenised at once they take 6 GiB."""
    text = "\n\n".join(documents)
    with open(tmp_path / "mine.txt", "w") as file:
        for _ in range(math.ceil(30e6 / len(text))):
            file.write(text)
    program = f"""
from pathlib import Path
from gramprune.experiment import settings
from gramprune.machine import peak_memory
from gramprune.stages.calibrate import calibrate
from gramprune.stages.evaluate import evaluate_perplexity
from gramprune.stages.texts import fetch_data
folder = Path({str(tmp_path)!r})
fetch_data(folder / "mine.parquet", "mine", settings.Dataset(path=str(folder / "mine.txt")).source_settings, "")
shares = [{{"dataset": "mine", "samples": 64, "separator": None}}]
chosen = {{"datasets": shares, "length": 64, "seed": 0, "pack": "auto", "bos": "auto"}}
calibrate(Path({str(chatty)!r}), [folder / "mine.parquet"], folder / "out.safetensors", chosen, "")
chosen = {{"dataset": "mine", "separator": None, "length": 64, "stride": 64, "windows": 20, "bos": "auto"}}
chosen["dtype"] = "float32"
files = Path({str(chatty)!r}), None, folder / "mine.parquet", folder / "out.json"
evaluate_perplexity(*files, chosen, "", "cpu", 4, "whole")
print(peak_memory()["peak_host_mb"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1200  # MiB
