"""What `attn_implementation="modelassay"` does with a tiny model, compared with its eager attention in every way it is called."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from modelassay_kernels.attention import transformers as adapter
from support.attention_models import tiny_model, with_attention

TOLERANCE = 5e-4
"""Of the largest number of the eager output; both in fp32. A wrong mask is off by 1e-2 and more."""
TOKENS, PADDED, NEW_TOKENS = 9, 3, 7
"""More tokens than the window of 4, so that caches with a window run over."""
AGREES, OWN_ATTENTION = "agrees", "no attention by interface"
UNMOVED = "the mask changes nothing"

Run = Callable[[], list[Tensor]]


class Sweep:
    """A model, its inputs, and the ways of calling it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inputs = inspect.signature(self.model.forward).parameters
        self.decodes = "decoder_input_ids" in self.inputs and "input_ids" in self.inputs
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(3, 30, (2, TOKENS), generator=generator)
        self.pixels = torch.randn(2, 3, 28, 28, generator=generator)
        self.left, self.right = torch.ones_like(self.ids), torch.ones_like(self.ids)
        self.left[0, :PADDED] = 0
        self.right[1, -PADDED:] = 0

    def modes(self) -> dict[str, Run]:
        """Return the ways of calling it, by name."""
        if "input_ids" not in self.inputs:
            return {"pixels": lambda: [self.model(pixel_values=self.pixels)[0]]}
        modes: dict[str, Run] = {"prefill": lambda: self.prefill(None)}
        if "attention_mask" in self.inputs:
            modes |= {"left": lambda: self.prefill(self.left), "right": lambda: self.prefill(self.right)}
        if self.model.can_generate():
            modes |= {"steps": self.steps, "dynamic": lambda: self.generate("dynamic")}
            modes |= {"static": lambda: self.generate("static")}
        return modes if not self.decodes else {name: run for name, run in modes.items() if name != "steps"}

    def prefill(self, mask: Tensor | None) -> list[Tensor]:
        """Return the output, padding too."""
        options: dict[str, Any] = {"decoder_input_ids": self.ids.flip(1)} if self.decodes else {}
        options |= {"attention_mask": mask} if "attention_mask" in self.inputs else {}
        options |= {"use_cache": False} if "use_cache" in self.inputs else {}
        return [self.model(input_ids=self.ids, **options)[0]]

    def steps(self) -> list[Tensor]:
        """Return the output, padding too, given to a cache as five tokens, three and one."""
        cache, outputs = None, []
        for start, stop in ((0, 5), (5, 8), (8, 9)):
            options = {"past_key_values": cache} if cache is not None else {}
            output = self.model(
                input_ids=self.ids[:, start:stop], attention_mask=self.left[:, :stop], use_cache=True, **options
            )
            cache = output.past_key_values
            outputs.append(output[0])
        return outputs

    def generate(self, cache: str) -> list[Tensor]:
        """Return the tokens that are generated and their logits."""
        output = self.model.generate(
            input_ids=self.ids, attention_mask=self.left, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
            eos_token_id=None, output_logits=True, return_dict_in_generate=True, cache_implementation=cache,
            decoder_start_token_id=1,
        )  # fmt: skip
        return [torch.stack(output.logits), output.sequences.double()]


def outcomes(model_type: str) -> dict[str, str]:
    """Return what comes of each way of calling the model."""
    eager = tiny_model(model_type)
    with _counting() as calls, torch.no_grad():
        try:
            other = with_attention(eager, model_type, adapter.NAME)
        except KeyError as error:  # a table of its own, from names to classes of attention
            return {"made": f"raises KeyError: {error}"}
        results = {}
        unmasked: list[Tensor] = []
        runs = Sweep(other).modes()
        for mode, eager_run in Sweep(eager).modes().items():
            try:
                expected = _run(eager_run)
            except Exception as error:  # noqa: BLE001 - a way that the model cannot be called in
                results[mode] = f"eager fails: {type(error).__name__}"
                continue
            del calls[:]
            results[mode] = _compare(runs[mode], expected)
            if results[mode] == AGREES and not calls:
                results[mode] = OWN_ATTENTION
            elif mode == "prefill":
                unmasked = expected
            elif results[mode] == AGREES and mode in {"left", "right"} and _error(unmasked, expected) < 20 * TOLERANCE:
                results[mode] = UNMOVED
    return results


def _run(run: Run) -> list[Tensor]:
    torch.manual_seed(0)  # some models draw what they mask
    return run()


def _compare(run: Run, expected: list[Tensor]) -> str:
    try:
        got = _run(run)
    except Exception as error:  # noqa: BLE001 - which one it is is the result
        sentence = re.search(r"attn_implementation='modelassay': (.*)", str(error)) or re.search(
            r"^attention: (.*)", str(error)
        )
        return f"refused: {sentence[1]}" if sentence else f"raises {type(error).__name__}: {error}"
    error = _error(got, expected)
    return AGREES if error <= TOLERANCE else f"differs by {error:.1e}"


def _error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference as a part of the largest number, of all tensors; NaN where one has it."""
    errors = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(got, expected, strict=True)])
    return float(errors.max())


@contextmanager
def _counting() -> Iterator[list[nn.Module]]:
    """Register attention with a function that notes whose it computes."""
    calls: list[nn.Module] = []

    def counted(module: nn.Module, *args: Any, **options: Any) -> Any:
        result = adapter.attention_forward(module, *args, **options)
        calls.append(module)
        return result

    adapter.register_attention()
    transformers.AttentionInterface.register(adapter.NAME, counted)
    try:
        yield calls
    finally:
        adapter.register_attention()
