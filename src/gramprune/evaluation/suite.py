"""lm-eval's model for checkpoints, but for how likelihoods are computed: all requests of all tasks together.

lm-eval asks once for the likelihoods of all its tasks. So a model that is executed block by block reads each block once
for a whole suite. Texts become tokens, are cut and shortened as lm-eval does it, and its sums are taken in its dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from gramprune.evaluation.asked import Logits, measured


class Suite(HFLM):
    """A model whose likelihoods are those of `logits`; what generates text needs the whole model.

    model: of transformers; or, where it is not in memory, what has its `config` and `device`.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, logits: Logits):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._logits, self._sequences = logits, batch_size

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],  # texts, context, continuation
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Of every request the logarithm of its continuation's likelihood, and whether it is the likeliest.

        Sequences that several requests have in common, as those of continuations of one token, are seen once.
        """
        seen = [tuple((context + new)[-(self.max_length + 1) :][:-1]) for _, context, new in requests]
        order = sorted(set(seen), key=lambda sequence: (-len(sequence), sequence))
        chunks = [order[start : start + self._sequences] for start in range(0, len(order), self._sequences)]
        places = {sequence: divmod(number, self._sequences) for number, sequence in enumerate(order)}
        wanted: list[list[int]] = [[] for _ in chunks]  # requests by batch
        for number, sequence in enumerate(seen):
            wanted[places[sequence][0]].append(number)
        batches, asked, targets = [], [], []
        for chunk, numbers in zip(chunks, wanted, strict=True):
            length = len(chunk[0])
            batches.append(torch.tensor([[*sequence, *[0] * (length - len(sequence))] for sequence in chunk]))
            found: list[int] = []
            for number in numbers:
                end = places[seen[number]][1] * length + len(seen[number])
                found += range(end - len(requests[number][2]), end)
            asked.append(torch.tensor(found))
            targets.append(torch.tensor([token for number in numbers for token in requests[number][2]]))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for numbers, scores in zip(wanted, measured(self._logits, batches, asked, targets, self._scores), strict=True):
            lengths = [len(requests[number][2]) for number in numbers]
            for number, some in zip(numbers, scores.split(lengths), strict=True):
                answers[number] = float(some[:, 0].sum()), bool(some[:, 1].all())
        return answers

    def _scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of every position the logarithm of the likelihood of its token, and 1 where it is the likeliest, else 0."""
        logarithms = torch.nn.functional.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        likely = logarithms.gather(1, targets[:, None])[:, 0]
        return torch.stack([likely, (logarithms.argmax(1) == targets).to(likely.dtype)], dim=1)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of every text the logarithm of its likelihood; the windows of all of them are one batch to lm-eval."""
        self.batch_size_per_gpu = 2**62
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.batch_size_per_gpu = self._sequences
