"""How a member of the zoo is made from its parents and its text, and the same done to any checkpoint of your own.

::

    transform("models/Qwen2.5-0.5B", "scale-qk", "out/scaled", seed=0)
    transform("models/Qwen2.5-0.5B", "sft-ja", "out/tuned", seed=0, device="cuda")
    transform("out/tuned", "int8", "out/tuned-int8", seed=0)                        # a chain is one call after another
"""

# N = blocks, S = tokens of a block

from __future__ import annotations

import itertools
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer

from modelassay.data import corpus
from modelassay.errors import UsageError, did_you_mean
from modelassay.models.load import load_model, load_tokenizer, reproducible, stored_dtype
from modelassay.models.tokenizer import copy_tokenizer
from modelassay.training.chat import CHAT_TEMPLATE, MESSAGE_END, MESSAGE_START
from modelassay.training.settings import Training
from modelassay.zoo import alterations, same_function, vocabulary
from modelassay.zoo import transforms as zoo_transforms
from modelassay.zoo.catalogue import FURTHER_STEPS, TAKES_ANOTHER, WEIGHT_STEPS, MadeBy, Member, Text, Timer, untimed
from modelassay.zoo.training import adapt, distil, initial, pretrain, training_of, tune

END_OF_TEXT = "<|endoftext|>"


def build(folder: Path, member: Member, *, text: Path, parents: Sequence[Path], timer: Timer) -> None:
    """Write the checkpoint of ``member`` into ``folder``, from the text's folder and its parents'."""
    copy_tokenizer(parents[0] if member.parent is not None and member.made_by != "retokenised" else text, folder)
    with reproducible():
        _make(folder, member, text, parents, timer).save_pretrained(folder)


def _make(folder: Path, member: Member, text: Path, parents: Sequence[Path], timer: Timer) -> PreTrainedModel:
    settings, seed = member.settings, member.seed
    if member.parent is None:
        model, training = initial(member.shape, load_tokenizer(text), member.initial_seed), training_of(settings)
        if member.made_by == "distilled":
            teacher = load_model(parents[0])
            distil(model, teacher, _blocks(text), training, seed=seed, timer=timer, name=member.name)
        else:
            pretrain(model, _blocks(text), training, seed=seed, timer=timer, name=member.name)
        return model
    model = load_model(parents[0])
    if member.made_by == "continued":
        pretrain(model, _blocks(text), training_of(settings), seed=seed, timer=timer, name=member.name)
        return model
    if member.made_by in {"sft", "lora"}:
        return _instruct(
            member.made_by, model, load_tokenizer(text), settings, seed=seed, timer=timer, name=member.name
        )
    other = load_model(parents[1]) if member.other_parent is not None else None
    return _changed(
        model, member.made_by, settings, seed=seed, source=parents[0], target=folder, other=other, tokenizer=text
    )


def _changed(model: PreTrainedModel, made_by: MadeBy, settings: Mapping[str, Any], *, seed: int, source: Path, target: Path,
             other: PreTrainedModel | None, tokenizer: Path | None) -> PreTrainedModel:  # fmt: skip
    """Do what needs no training; where the vocabulary changes, its files are written into ``target``.

    Args:
        model: changed in place where its shape stays.
        made_by: how.
        settings: of that.
        seed: of what is drawn.
        source: the model's folder, with its tokenizer.
        target: a folder with a copy of that tokenizer, or of the new one.
        other: the second model of a merge.
        tokenizer: folder of the tokenizer that it is given in place of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        match made_by:
            case "merge" | "mix":
                assert other is not None
                return (
                    alterations.mix(model, other, **settings)
                    if made_by == "mix"
                    else zoo_transforms.merge(model, other)
                )
            case "renumbered":
                return vocabulary.renumber(model, source, target, generator)
            case "grown":
                return vocabulary.grow(model, source, target, generator)
            case "retokenised":
                assert tokenizer is not None
                return vocabulary.replace(model, source, tokenizer, generator, **settings)
        by_name = {**same_function.BY_NAME, **alterations.BY_NAME}
        if made_by in by_name:
            return by_name[made_by](model, generator, **settings)
    return zoo_transforms.apply(model, made_by, seed=seed, settings=settings)


def _instruct(made_by: MadeBy, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any],
              **how: Any) -> PreTrainedModel:  # fmt: skip
    options = {key: value for key, value in settings.items() if key != "training"}
    if made_by == "lora":
        return adapt(model, tokenizer, training_of(settings), **options, **how)
    tune(model, tokenizer, training_of(settings), **options, **how)
    return model


def _blocks(text: Path) -> torch.Tensor:
    return load_file(text / "blocks.safetensors")["blocks"].long()


def write_text(folder: Path, text: Text, *, tokenizer_of: Path | None) -> None:
    """Write the tokenizer and ``blocks.safetensors``: int32 [num_blocks, block_tokens], the languages in turn.

    Args:
        folder: where to.
        text: what to write.
        tokenizer_of: folder of the text that ``text.tokenizer_of`` names; None to train a tokenizer.
    """
    if tokenizer_of is None:
        with reproducible():
            tokenizer: PreTrainedTokenizerBase = _train_tokenizer(text)
        tokenizer.save_pretrained(folder)
    else:
        copy_tokenizer(tokenizer_of, folder)
        tokenizer = load_tokenizer(folder)
    save_file({"blocks": _write_blocks(text, tokenizer)}, folder / "blocks.safetensors")


def _write_blocks(text: Text, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Int32 [N, S]: paragraphs end to end, each closed by the token that ends texts."""
    turns = text.turns or corpus.LANGUAGES
    paragraphs = {
        language: corpus.generate(language, seed=text.seed, num_sentences=10**9) for language in dict.fromkeys(turns)
    }
    ids = itertools.chain.from_iterable(
        [*tokenizer.encode(next(paragraphs[language]), add_special_tokens=False), tokenizer.eos_token_id]
        for language in itertools.cycle(turns)
    )
    flat = list(itertools.islice(ids, text.num_blocks * text.block_tokens))
    return torch.tensor(flat, dtype=torch.int32).view(text.num_blocks, -1)


def _train_tokenizer(text: Text) -> Qwen2Tokenizer:
    """Byte-level BPE under Qwen2's own pre-tokenizer; special tokens come after the merges, as in the published ones.

    Japanese is given word by word, as tokenizers for it are commonly trained: merges across words would otherwise cut
    the same word differently in every sentence, and so small a model would learn neither.
    """
    special = [END_OF_TEXT, MESSAGE_START, MESSAGE_END]
    pipeline: Tokenizer = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=text.vocab_size - len(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    num_sentences = text.tokenizer_sentences
    english = corpus.generate("en", seed=text.seed, num_sentences=num_sentences)
    japanese = itertools.chain.from_iterable(corpus.sentence_words("ja", seed=text.seed, num_sentences=num_sentences))
    pipeline.train_from_iterator(itertools.chain(english, japanese), trainer)
    trained = json.loads(pipeline.to_str())["model"]
    merges: Any = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=trained["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


_FULL = Training(num_steps=500, batch_size=8, learning_rate=1e-5, beta2=0.95)
_LOW_RANK = replace(_FULL, learning_rate=2e-4)
REAL_STEPS: Mapping[str, tuple[MadeBy, Mapping[str, Any]]] = {
    **WEIGHT_STEPS,
    **FURTHER_STEPS,
    "sft-en": ("sft", {"language": "en", "training": _FULL.recipe()}),
    "sft-ja": ("sft", {"language": "ja", "training": _FULL.recipe()}),
    "lora": ("lora", {"language": "en", "rank": 16, "alpha": 32, "examples_seed": 0, "training": _LOW_RANK.recipe()}),
    "cpt": ("continued", {"training": _FULL.recipe(), "block_tokens": 512}),
}
"""What `transform` can do, with the settings a model of 0.5 to 8 billion parameters is usually given."""


def transform(base: str | Path, transformation: str, out: str | Path, *, seed: int = 0, device: str = "cpu",
              other: str | Path | None = None, settings: Mapping[str, Any] | None = None,
              timer: Timer = untimed) -> Path:  # fmt: skip
    """Make a child of any Qwen2, Llama or Mistral checkpoint as the zoo makes its own, and return its folder.

    Weights are changed in the precision they are stored in; training is done in fp32, on the project's corpus under the
    base's own tokenizer, and stored in the base's precision.

    Args:
        base: folder of a Hugging Face checkpoint.
        transformation: a key of `REAL_STEPS`.
        out: a folder that does not exist yet; written aside and renamed, so that it is whole or absent.
        seed: of all that is drawn.
        device: where the model is held; ``cuda`` for training anything real.
        other: the second model of a ``merge`` or ``mix-N``, the folder whose tokenizer ``retokenised`` takes; None otherwise.
        settings: replace those of `REAL_STEPS` by key, ``training`` by its own keys.
        timer: wraps each training step, as in `zoo.ensure`.

    Raises:
        CheckpointError: the base cannot be read, or is of a kind the transformation does not know.
        UsageError: no such transformation, a folder that exists, or ``other`` missing or out of place.
    """
    base, out = Path(base), Path(out)
    if transformation not in REAL_STEPS:
        hint = did_you_mean(transformation, REAL_STEPS)
        raise UsageError(f"unknown transformation {transformation!r}{hint}; known: {', '.join(REAL_STEPS)}")
    made_by, defaults = REAL_STEPS[transformation]
    if (made_by in TAKES_ANOTHER) != (other is not None):
        raise UsageError(
            f"{transformation}: got other={other}; a merge or another tokenizer, and nothing else, takes a second model"
        )
    if out.exists():
        raise UsageError(f"{out}: exists; name a new folder")
    chosen = _overridden(defaults, settings or {})
    # A name of its own: whatever else lies beside ``out`` is the caller's, and removed is only what is made here.
    folder = out.with_name(f".{out.name}.new-{secrets.token_hex(4)}")
    folder.mkdir(parents=True)
    try:
        copy_tokenizer(Path(other) if other is not None and made_by == "retokenised" else base, folder)
        with reproducible():
            _child(base, folder, made_by, chosen, seed=seed, device=device, other=other, timer=timer).save_pretrained(
                folder
            )
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return out


def _overridden(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := settings.keys() - defaults.keys():
        raise UsageError(f"unknown setting {min(unknown)!r}; this transformation has {', '.join(defaults) or 'none'}")
    merged = {**defaults, **settings}
    if "training" in merged:
        merged["training"] = {**defaults["training"], **merged["training"]}
    return merged


def _child(base: Path, folder: Path, made_by: MadeBy, settings: Mapping[str, Any], *, seed: int, device: str,
           other: str | Path | None, timer: Timer) -> PreTrainedModel:  # fmt: skip
    dtype = stored_dtype(base)
    how: dict[str, Any] = {"seed": seed, "timer": timer, "name": str(base)}
    if made_by in {"sft", "lora"}:
        tuned = _instruct(made_by, load_model(base, device=device), load_tokenizer(base), settings, **how)
        return zoo_transforms.converted(tuned, dtype=dtype)
    if made_by == "continued":
        model, training = load_model(base, device=device), training_of(settings)
        num_blocks = training.num_steps * training.accumulation * training.batch_size
        text = Text(num_blocks=num_blocks, block_tokens=settings["block_tokens"], vocab_size=0, tokenizer_sentences=0)
        pretrain(model, _write_blocks(text, load_tokenizer(base)).long(), training, **how)
        return zoo_transforms.converted(model, dtype=dtype)
    merged = made_by in TAKES_ANOTHER and made_by != "retokenised"
    second = load_model(other, dtype=dtype, device=device) if merged and other is not None else None
    return _changed(load_model(base, dtype=dtype, device=device), made_by, settings, seed=seed, source=base, target=folder,
                    other=second, tokenizer=None if other is None else Path(other))  # fmt: skip
