"""How the model of the golden figures was made: a Llama of 25,000 weights that reads bytes, trained for a minute.

    python tests/golden/train.py FOLDER

Its weights lie in `model/` and are not made again: another machine would train another model.
"""

import sys
from pydoc_data.topics import topics

import torch
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, BATCH, LENGTH = 3000, 16, 96


def train(folder: str) -> None:
    """Train on the topics of Python's manual, and save."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    text = torch.tensor([byte % 128 for byte in "\n".join(topics.values()).encode("ascii", "ignore")])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS, pct_start=0.05)
    for step in range(STEPS):
        starts = torch.randint(len(text) - LENGTH, (BATCH,))
        tokens = torch.stack([text[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 250 == 0:
            print(step, float(loss.detach()))
    model.save_pretrained(folder)


if __name__ == "__main__":
    train(*sys.argv[1:])
