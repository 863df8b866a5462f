"""Calibration sequences, windows and perplexity."""

import math
import random
from itertools import pairwise

import pytest
import torch
from problems import assert_sentence
from transformers import LlamaConfig, LlamaForCausalLM

from gramprune import GrampruneError
from gramprune.evaluation.perplexity import digest, perplexity, windows
from gramprune.model.logits import whole_logits
from gramprune.text.calibration import sequences

LENGTH = 5
COUNTS = [23, 4, 5, 12, 0, 9, 40]  # tokens per document: 4 + 0 + 1 + 2 + 0 + 1 + 8 = 16 windows
# Every token occurs once: thousands are the document, the rest is the place in it.
DOCUMENTS = [" ".join(str(1000 * (d + 1) + i) for i in range(count)) for d, count in enumerate(COUNTS)]
LONG_ENOUGH = {0, 2, 3, 5, 6}
END = 7


def encode(text: str) -> list[int]:
    return [int(token) for token in text.split()]


def sample(samples: int, seed: int = 0, length: int = LENGTH, **more) -> list[list[int]]:
    return sequences(DOCUMENTS, encode, samples, length, seed, "corpus", **more).sequences


def document(window: list[int]) -> int:
    return window[0] // 1000 - 1


def papers(samples: int, seed: int) -> list[list[int]]:
    """The design with everything in memory: the windows of a seed never change."""
    generator = random.Random(seed)
    chosen, further = [], []
    for index in generator.sample(range(len(DOCUMENTS)), len(DOCUMENTS)):
        tokens = encode(DOCUMENTS[index])
        if len(tokens) >= LENGTH:
            start = generator.randrange(len(tokens) % LENGTH + 1)
            cut = [tokens[at : at + LENGTH] for at in range(start, len(tokens) - LENGTH + 1, LENGTH)]
            generator.shuffle(cut)
            chosen += cut[:1]
            further += cut[1:]
        if len(chosen) == samples:
            return chosen
    return chosen + generator.sample(further, samples - len(chosen))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("samples", [1, 3, 5, 6, 9, 16])
def test_the_windows_of_a_seed_are_those_of_the_design(samples, seed):
    assert sample(samples, seed) == sample(samples, seed, pack="auto") == papers(samples, seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("samples", [1, 3, 5, 6, 9, 16])
def test_sequences_are_windows_of_the_documents_that_never_overlap(samples, seed):
    chosen = sample(samples, seed)
    assert len(chosen) == samples
    for window in chosen:
        assert window == list(range(window[0], window[0] + LENGTH))  # neighbours, of one document
    tokens = [token for window in chosen for token in window]
    assert len(tokens) == len(set(tokens))


@pytest.mark.parametrize("seed", range(5))
def test_every_document_gives_one_window_before_any_gives_two(seed):
    """The design of Wanda (arXiv 2306.11695) and SparseGPT (arXiv 2301.00774): one window per document."""
    for samples in range(1, 10):
        documents = [document(window) for window in sample(samples, seed)]
        first = documents[: len(LONG_ENOUGH)]
        assert len(set(first)) == len(first)
        if samples >= len(LONG_ENOUGH):
            assert set(first) == LONG_ENOUGH


def test_the_seed_decides_documents_and_places():
    assert sample(4, seed=3) == sample(4, seed=3)
    assert len({str(sample(4, seed)) for seed in range(10)}) > 5
    assert len({tuple(sorted(document(w) for w in sample(2, seed))) for seed in range(20)}) > 3
    starts = {window[0] % 1000 for seed in range(40) for window in sample(1, seed)}
    assert len(starts) > 10


def test_documents_after_the_last_needed_one_are_not_tokenised():
    seen = []
    sequences(["1 2 3 4 5"] * 100, lambda text: seen.append(text) or encode(text), 3, 5, 0, "corpus")
    assert len(seen) == 3


def test_documents_are_packed_in_the_order_of_the_seed_with_an_end_behind_each():
    made = sequences(DOCUMENTS, encode, 17, LENGTH, 3, "corpus", "auto", end=[END])
    order = random.Random(3).sample(range(len(DOCUMENTS)), len(DOCUMENTS))
    stream = [token for index in order if COUNTS[index] for token in [*encode(DOCUMENTS[index]), END]]
    assert made.packed and made.sequences == [stream[at : at + LENGTH] for at in range(0, 17 * LENGTH, LENGTH)]
    assert made.sequences == sample(17, 3, pack="always", end=[END])
    assert sample(17, 4, pack="auto", end=[END]) != made.sequences
    used = next(n for n in range(8) if sum(COUNTS[index] + bool(COUNTS[index]) for index in order[:n]) >= 17 * LENGTH)
    assert made.documents == used


def test_packing_is_only_for_what_is_too_short():
    assert sample(16, pack="auto", end=[END]) == sample(16)
    assert all(END not in window for window in sample(16, pack="auto", end=[END]))
    assert sample(16, pack="always", end=[END]) != sample(16)
    assert not sequences(DOCUMENTS, encode, 16, LENGTH, 0, "corpus", "auto").packed


def test_a_document_that_has_its_end_gets_no_other():
    made = sequences(["1 2 3 7", "4 5", "6 8 7"], encode, 2, 5, 0, "corpus", "always", end=[END])
    tokens = [token for window in made.sequences for token in window]
    assert (END, END) not in pairwise(tokens) and tokens.count(END) == 3


def test_what_stands_in_front_is_part_of_the_length_and_stands_in_front_of_all():
    for pack in ("never", "auto", "always"):
        made = sample(9, pack=pack, length=LENGTH + 1, front=[2], end=[END])
        assert [window[0] for window in made] == [2] * 9
        assert [window[1:] for window in made] == sample(9, pack=pack, end=[END])


def test_too_little_text_is_refused_with_the_counts():
    short = ["1 2 3 4 5 6 7", "1 2 3", "1 2 3 4 5"]
    with pytest.raises(GrampruneError) as error:
        sequences(short, encode, 4, 5, 0, "corpus")
    assert_sentence(error, "corpus", "3 documents", "2 windows", "5 tokens", "4", "set calibration.pack to auto")
    with pytest.raises(GrampruneError) as error:
        sequences(short, encode, 4, 5, 0, "corpus", "auto", end=[END])
    assert_sentence(error, "corpus", "3 documents", "3 windows of 5 tokens, even when they are packed", "asks for 4")


def test_a_length_without_room_for_text_is_refused():
    with pytest.raises(GrampruneError) as error:
        sample(1, length=1, front=[2])
    assert_sentence(error, "calibration.length is 1")


def test_windows_are_cut_one_after_the_other_and_the_remainder_is_dropped():
    tokens = [list(range(23))]
    assert windows(tokens, 5, 5, None, "corpus").tolist() == [list(range(i, i + 5)) for i in (0, 5, 10, 15)]
    assert windows(tokens, 5, 5, 2, "corpus").tolist() == [list(range(i, i + 5)) for i in (0, 5)]
    assert windows(tokens, 9, 7, None, "corpus").tolist() == [list(range(i, i + 9)) for i in (0, 7, 14)]


def test_no_more_text_is_taken_than_windows_need():
    taken = []
    text = (taken.append(n) or list(range(10 * n, 10 * n + 10)) for n in range(100))
    assert windows(text, 9, 7, 3, "corpus").tolist() == [list(range(i, i + 9)) for i in (0, 7, 14)]
    assert taken == [0, 1, 2]  # 23 tokens


@pytest.mark.parametrize(
    "length, limit, words", [(24, None, ["0 windows of 24", "1"]), (5, 5, ["4 windows of 5", "5"])]
)
def test_too_few_windows_are_refused_with_the_counts(length, limit, words):
    with pytest.raises(GrampruneError) as error:
        windows([list(range(20)), [20, 21, 22]], length, length, limit, "corpus")
    assert_sentence(error, "corpus", "23 tokens", *words)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50, max_position_embeddings=32, initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (7, 12), generator=torch.Generator().manual_seed(1))


def test_perplexity_is_that_of_every_window_by_itself_in_float64(model, tokens):
    losses = torch.zeros(7, 11, dtype=torch.float64)
    for row, window in enumerate(tokens):
        with torch.no_grad():
            logits = model(input_ids=window[None]).logits[0].double()
        chances = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        losses[row] = torch.tensor([-math.log(chances[i - 1, window[i]]) for i in range(1, 12)])
    measured = perplexity(whole_logits(model), tokens, 12, batch_size=3)
    mean = float(losses.mean())
    assert measured["loss"] == pytest.approx(mean, rel=1e-6)
    assert measured["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert measured["loss_per_window"] == pytest.approx(losses.mean(dim=1).tolist(), rel=1e-5)
    assert (measured["predicted_tokens"], measured["windows"], measured["length"]) == (7 * 11, 7, 12)


def test_with_a_stride_every_token_is_scored_once_with_all_that_its_window_has_before_it(model):
    text = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    measured = perplexity(whole_logits(model), windows([text], 12, 4, None, "corpus"), 4, 3)
    losses = []
    for place in range(1, 28):  # (30 - 12) // 4 + 1 = 5 windows reach to token 27
        window = max(0, -(-(place - 11) // 4))  # the first window that has it
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text[4 * window : place]])).logits[0, -1].double()
        losses.append(-float(logits.log_softmax(-1)[text[place]]))
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert measured["tokens_per_window"] == [11, 4, 4, 4, 4] and measured["predicted_tokens"] == 27


@pytest.mark.parametrize("front", [[1], [1, 3]])
@pytest.mark.parametrize("stride", [11, 4])
def test_behind_what_stands_in_front_every_token_of_the_text_is_scored_once(model, stride, front):
    text = torch.randint(0, 50, (45,), generator=torch.Generator().manual_seed(2)).tolist()
    cut = windows([text], 11, stride, None, "corpus")
    measured = perplexity(whole_logits(model), cut, stride, 3, front)
    losses, seen = [], 0
    for start in range(0, 45 - 11 + 1, stride):
        for place in range(seen, start + 11):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([front + text[start:place]])).logits[0, -1].double()
            losses.append(-float(logits.log_softmax(-1)[text[place]]))
        seen = start + 11
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert measured["predicted_tokens"] == len(losses) == seen
    assert (measured["length"], measured["front"]) == (len(front) + 11, front)


def test_the_digest_is_that_of_what_models_see():
    import hashlib

    cut = windows([list(range(4000))], 3, 2, None, "corpus")
    rows = torch.tensor([[9, *range(at, at + 3)] for at in range(0, 3998, 2)])
    assert digest(cut, [9]) == hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    assert digest(cut, []) == hashlib.sha256(rows[:, 1:].contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("batch_size", [2, 7, 100])
def test_the_batch_size_changes_nothing_but_rounding(model, tokens, batch_size):
    one = perplexity(whole_logits(model), tokens, 12, 1)
    many = perplexity(whole_logits(model), tokens, 12, batch_size)
    assert many["perplexity"] == pytest.approx(one["perplexity"], rel=1e-6)
    assert many["loss_per_window"] == pytest.approx(one["loss_per_window"], rel=1e-5)
    assert many["predicted_tokens"] == one["predicted_tokens"]


def test_a_loss_that_is_not_finite_is_refused(model, tokens):
    broken = LlamaForCausalLM(model.config)
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(GrampruneError) as error:
        perplexity(whole_logits(broken), tokens, 12, 4)
    assert_sentence(error, "not finite", "float32")
