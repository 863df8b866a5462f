"""Calibration sequences, windows and perplexity."""

import math

import pytest
import torch
from problems import assert_sentence
from transformers import LlamaConfig, LlamaForCausalLM

from gramprune import GrampruneError
from gramprune.evaluation.perplexity import perplexity, windows
from gramprune.text.calibration import sequences

LENGTH = 5
COUNTS = [23, 4, 5, 12, 0, 9, 40]  # tokens per document: 4 + 0 + 1 + 2 + 0 + 1 + 8 = 16 windows
# Every token occurs once: thousands are the document, the rest is the place in it.
DOCUMENTS = [" ".join(str(1000 * (d + 1) + i) for i in range(count)) for d, count in enumerate(COUNTS)]
LONG_ENOUGH = {0, 2, 3, 5, 6}


def encode(text: str) -> list[int]:
    return [int(token) for token in text.split()]


def sample(samples: int, seed: int = 0) -> list[list[int]]:
    return sequences(DOCUMENTS, encode, samples, LENGTH, seed, "corpus")


def document(window: list[int]) -> int:
    return window[0] // 1000 - 1


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


def test_too_little_text_is_refused_with_the_counts():
    with pytest.raises(GrampruneError) as error:
        sequences(["1 2 3 4 5 6 7", "1 2 3", "1 2 3 4 5"], encode, 4, 5, 0, "corpus")
    assert_sentence(error, "corpus", "3 documents", "2 windows", "5 tokens", "4")


def test_windows_are_cut_one_after_the_other_and_the_remainder_is_dropped():
    tokens = list(range(23))
    assert windows(tokens, 5, 5, None, "corpus").tolist() == [list(range(i, i + 5)) for i in (0, 5, 10, 15)]
    assert windows(tokens, 5, 5, 2, "corpus").tolist() == [list(range(i, i + 5)) for i in (0, 5)]
    assert windows(tokens, 9, 7, None, "corpus").tolist() == [list(range(i, i + 9)) for i in (0, 7, 14)]
    assert windows(tokens, 23, 23, 1, "corpus").dtype == torch.int64


@pytest.mark.parametrize(
    "length, limit, words", [(24, None, ["0 windows of 24", "1"]), (5, 5, ["4 windows of 5", "5"])]
)
def test_too_few_windows_are_refused_with_the_counts(length, limit, words):
    with pytest.raises(GrampruneError) as error:
        windows(list(range(23)), length, length, limit, "corpus")
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
    measured = perplexity(model, tokens, 12, batch_size=3, device="cpu")
    mean = float(losses.mean())
    assert measured["loss"] == pytest.approx(mean, rel=1e-6)
    assert measured["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert measured["loss_per_window"] == pytest.approx(losses.mean(dim=1).tolist(), rel=1e-5)
    assert (measured["predicted_tokens"], measured["windows"], measured["length"]) == (7 * 11, 7, 12)


def test_with_a_stride_every_token_is_scored_once_with_all_that_its_window_has_before_it(model):
    text = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    measured = perplexity(model, windows(text, 12, 4, None, "corpus"), 4, 3, "cpu")
    losses = []
    for place in range(1, 28):  # (30 - 12) // 4 + 1 = 5 windows reach to token 27
        window = max(0, -(-(place - 11) // 4))  # the first window that has it
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text[4 * window : place]])).logits[0, -1].double()
        losses.append(-float(logits.log_softmax(-1)[text[place]]))
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert measured["tokens_per_window"] == [11, 4, 4, 4, 4] and measured["predicted_tokens"] == 27


@pytest.mark.parametrize("batch_size", [2, 7, 100])
def test_the_batch_size_changes_nothing_but_rounding(model, tokens, batch_size):
    one = perplexity(model, tokens, 12, 1, "cpu")
    many = perplexity(model, tokens, 12, batch_size, "cpu")
    assert many["perplexity"] == pytest.approx(one["perplexity"], rel=1e-6)
    assert many["loss_per_window"] == pytest.approx(one["loss_per_window"], rel=1e-5)
    assert many["predicted_tokens"] == one["predicted_tokens"]


def test_a_loss_that_is_not_finite_is_refused(model, tokens):
    broken = LlamaForCausalLM(model.config)
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(GrampruneError) as error:
        perplexity(broken, tokens, 12, 4, "cpu")
    assert_sentence(error, "not finite", "float32")
