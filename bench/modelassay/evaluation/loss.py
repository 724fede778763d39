"""Held-out loss: how well a model predicts text that it was not trained on."""

# B = rows, S = tokens of a row

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelassay.data import corpus

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROW_TOKENS, BATCH_ROWS = 64, 16
"""Of the corpus's held-out text; fixed, because the last bits of a loss depend on them."""


def held_out_loss(path: Path, language: str, *, seed: int = 0, num_sentences: int = 400) -> float:
    """Return the mean cross-entropy in nats per token of a checkpoint on corpus text that no member was trained on.

    A child's change of utility is the difference from its parent; the unigram entropy of the text is 5.7 nats.
    Rows of 64 tokens, paragraphs end to end; about half a second for a member of the zoo.
    """
    import torch

    from modelassay.models.load import load_model, load_tokenizer

    model, tokenizer = load_model(path), load_tokenizer(path)
    paragraphs = corpus.generate(language, seed=corpus.HELD_OUT_SEED + seed, num_sentences=num_sentences)
    ids = [token for paragraph in paragraphs for token in [*tokenizer.encode(paragraph), tokenizer.eos_token_id]]
    return mean_loss(model, torch.tensor(ids[: len(ids) // ROW_TOKENS * ROW_TOKENS]).view(-1, ROW_TOKENS))


def mean_loss(model: PreTrainedModel, rows_BS: Tensor, *, batch_size: int = BATCH_ROWS) -> float:
    """Return the mean cross-entropy in nats per predicted token of rows of one length; the first token is not predicted.

    Perplexity is its exponential.
    """
    import torch

    with torch.no_grad():
        losses = [
            float(model(input_ids=rows.to(model.device), labels=rows.to(model.device)).loss) * len(rows)
            for rows in torch.split(rows_BS, batch_size)
        ]
    return sum(losses) / len(rows_BS)
