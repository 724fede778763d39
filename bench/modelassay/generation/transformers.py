"""Completions by a transformers model: many prompts at once, each as if it were alone.

**What is guaranteed.** A completion is defined by the model's logits for one prompt alone, without padding and without a
cache, and by `choice.choose`. Prompts are nevertheless computed together, padded on the left and with a cache, and those
logits differ in their last bits with the shape of the batch. So a token that such a difference could change (its
lead over the next one, or over the edge of top-k or top-p, is within the tolerance) is decided by the prompt's logits
alone. Completions are therefore the same for every batch size and every order of the prompts as long as no logit of a batch is
off by more than the tolerance; the difference is measured whenever a prompt is computed alone, at least once a batch, and one
above the tolerance is an error. Between machines, numbers of threads or versions of torch the last bits of a prompt alone
may differ, and with them a completion.
"""

# B = prompts of a batch, S = tokens of the longest, V = rows of the head

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modelassay.errors import AssayError, UsageError
from modelassay.generation.choice import Floats, choose
from modelassay.generation.engine import Completion, Finish, Prompt, Sampling
from modelassay.models.low_rank import Bank

TOLERANCES = {torch.float64: 2.0**-15, torch.float32: 2.0**-15, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}
"""By type of the weights: how far a logit of a batch may be off, as a share of the greatest logit's size.

On small models of twelve architectures the worst difference was 1 % of it in float32 and 34 % in bfloat16. A model in
float64 still takes its norms and angles in float32. In 16 bits the tolerance is so wide that half of the tokens and more
are decided alone: right, and slow."""


@dataclass(kw_only=True)
class Check:
    """What deciding prompts together came to so far."""

    num_tokens: int = 0
    num_alone: int = 0
    """Tokens whose prompt was computed alone."""
    worst: float = 0.0
    """Greatest difference of a logit to that of the prompt alone, as a share of its tolerance."""


@dataclass(kw_only=True)
class _Line:
    """A completion while it grows."""

    prompt: Prompt
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None


class TransformersEngine:
    """Completes prompts with a model in memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        tolerance: float | None = None,
        adapters: Bank | None = None,
    ) -> None:
        """Take a causal model and its tokenizer.

        Args:
            model: used in evaluation mode, which is put back afterwards.
            tokenizer: turns tokens to text, and names the end of texts where the model names none.
            batch_size: prompts computed together; changes speed and memory, nothing else.
            tolerance: as a share of the greatest logit's size; that of the weights' type in `TOLERANCES` if None.
            adapters: on the model, by the names that prompts give; prompts of different ones share a batch.
        """
        self.adapters = adapters
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.check = Check()
        self._tolerance = TOLERANCES[model.dtype] if tolerance is None else tolerance
        self._takes = inspect.signature(model.forward).parameters.keys()

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Return one completion a prompt, in the order of the prompts.

        Raises:
            UsageError: an empty prompt, one that leaves no room for ``max_new_tokens``, or an adapter that is not there.
            AssayError: the logits of a batch differ from those of a prompt alone by more than the tolerance.
        """
        self._refuse_misfits(prompts, sampling)
        stop = self._stop_ids() if sampling.stop_ids is None else sampling.stop_ids
        lines = [_Line(prompt=prompt) for prompt in prompts]
        by_length = sorted(lines, key=lambda line: len(line.prompt.ids))
        with _evaluating(self.model), torch.inference_mode():
            for first in range(0, len(lines), self.batch_size):
                self._grow(by_length[first : first + self.batch_size], sampling, frozenset(stop))
        return [self._completion(line) for line in lines]

    def _refuse_misfits(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        known = () if self.adapters is None else self.adapters.names
        for number, prompt in enumerate(prompts):
            if prompt.adapter is not None and prompt.adapter not in known:
                raise UsageError(
                    f"prompt {number} asks adapter {prompt.adapter!r}; there are {', '.join(known) or 'none'}"
                )
            if not prompt.ids:
                raise UsageError(f"prompt {number} is empty; begin it with a token, such as the one that ends texts")
            if room is not None and len(prompt.ids) + sampling.max_new_tokens > room:
                raise UsageError(
                    f"prompt {number} has {len(prompt.ids)} tokens, which with {sampling.max_new_tokens} new ones is more "
                    f"than the model's {room}; shorten it, or ask for fewer"
                )

    def _stop_ids(self) -> tuple[int, ...]:
        stated: Any = getattr(self.model.generation_config, "eos_token_id", None)
        if stated is None:
            stated = self.tokenizer.eos_token_id
        if stated is None:
            return ()
        return tuple(stated) if isinstance(stated, (list, tuple)) else (int(stated),)

    def _grow(self, lines: list[_Line], sampling: Sampling, stop: frozenset[int]) -> None:
        """Let all lines grow to their ends; those that have ended leave the batch once they are half of it."""
        ids_BS, mask_BS = _left_padded([line.prompt.ids for line in lines])
        cache: Any = None
        checked = False
        for position in range(sampling.max_new_tokens):
            with self._answering(lines):
                logits_BV, cache = self._together(ids_BS, mask_BS, cache)
            for line, logits_V in zip(lines, logits_BV, strict=True):
                if line.finish is None:
                    self._extend(line, logits_V, sampling, stop, position, measure=not checked)
                    checked = True
            alive = [row for row, line in enumerate(lines) if line.finish is None]
            if not alive:
                return
            if 2 * len(alive) <= len(lines):
                rows = torch.tensor(alive)
                cache.batch_select_indices(rows.to(self.model.device))
                lines, mask_BS = [lines[row] for row in alive], mask_BS[rows]
            ids_BS = torch.tensor([[line.ids[-1] if line.ids else 0] for line in lines])
            mask_BS = torch.cat([mask_BS, torch.ones(len(lines), 1, dtype=mask_BS.dtype)], dim=1)
        for line in lines:
            line.finish = line.finish or "length"

    def _extend(
        self, line: _Line, logits_V: Floats, sampling: Sampling, stop: frozenset[int], position: int, *, measure: bool
    ) -> None:
        """Add one token to a line, or end it."""
        tolerance = self._tolerance * _size(logits_V)
        where = {"seed": line.prompt.seed, "position": position}
        token, sure = choose(logits_V, sampling, **where, tolerance=tolerance) if _usable(logits_V) else (0, False)
        if measure or not sure:
            with self._answering([line]):
                alone_V = self._alone([*line.prompt.ids, *line.ids])
            self.check.num_alone += 1
            if not _usable(alone_V):
                line.finish = "nonfinite"
                return
            self._compare(logits_V, alone_V, tolerance)
            token, _ = choose(alone_V, sampling, **where)
        self.check.num_tokens += 1
        line.ids.append(token)
        if token in stop:
            line.finish = "stop"

    def _answering(self, lines: Sequence[_Line]) -> AbstractContextManager[None]:
        """Let each line be answered by its adapter."""
        return (
            nullcontext() if self.adapters is None else self.adapters.of_rows([line.prompt.adapter for line in lines])
        )

    def _together(self, ids_BS: Tensor, mask_BS: Tensor, cache: Any) -> tuple[Floats, Any]:
        """Logits of the next token of all lines, [B, V], and the cache with the new tokens in it."""
        options: dict[str, Any] = {"attention_mask": mask_BS.to(self.model.device)}
        if "position_ids" in self._takes:
            positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)[:, -ids_BS.shape[1] :]
            options["position_ids"] = positions_BS.to(self.model.device)
        output = self._forward(ids_BS, **options, past_key_values=cache, use_cache=True)
        return _as_numbers(output.logits[:, -1]), output.past_key_values

    def _alone(self, ids: Sequence[int]) -> Floats:
        """Logits of the next token of one prompt without padding, cache or company, [V]."""
        ids_BS = torch.tensor([ids])
        mask_BS = torch.ones_like(ids_BS).to(self.model.device)  # all of it; without one, transformers warns
        return _as_numbers(self._forward(ids_BS, attention_mask=mask_BS, use_cache=False).logits[0, -1])

    def _forward(self, ids_BS: Tensor, **options: Any) -> Any:
        if "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        return self.model(input_ids=ids_BS.to(self.model.device), **options)

    def _compare(self, logits_V: Floats, alone_V: Floats, tolerance: float) -> None:
        finite = np.isfinite(alone_V)
        difference = float(np.abs(logits_V[finite] - alone_V[finite]).max())
        if not difference <= tolerance:
            raise AssayError(
                f"generation: a logit computed in a batch is {difference:.3g} off that of its prompt alone, more than the "
                f"tolerance {tolerance:.3g}, so that completions would depend on the batch; use batch_size=1 with a greater "
                "tolerance, or float32 weights"
            )
        self.check.worst = max(self.check.worst, difference / tolerance)

    def _completion(self, line: _Line) -> Completion:
        assert line.finish is not None
        ids = line.ids[:-1] if line.finish == "stop" else line.ids
        text = self.tokenizer.decode(ids)
        assert isinstance(text, str)
        return Completion(ids=tuple(line.ids), text=text, finish=line.finish)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S], filled on the left, where no position is counted and none is attended to."""
    length = max(len(row) for row in rows)
    ids_BS = torch.tensor([[*[0] * (length - len(row)), *row] for row in rows])
    mask_BS = torch.tensor([[*[0] * (length - len(row)), *[1] * len(row)] for row in rows])
    return ids_BS, mask_BS


def _as_numbers(logits: Tensor) -> Floats:
    numbers: Floats = logits.double().cpu().numpy()
    return numbers


def _usable(logits_V: Floats) -> bool:
    """Whether a token can be chosen: minus infinity bars a token, all else must be a number."""
    return bool((logits_V < np.inf).all() and (logits_V > -np.inf).any())


def _size(logits_V: Floats) -> float:
    finite = np.abs(logits_V[np.isfinite(logits_V)])
    return max(1.0, float(finite.max())) if finite.size else 1.0
