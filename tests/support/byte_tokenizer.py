"""A tokenizer of bytes, which needs no training and knows every text."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(special: tuple[str, ...] = ("<s>", "<s2>", "</s>"), **options: Any) -> PreTrainedTokenizerFast:
    """Special tokens first, then the 256 bytes; it has neither a chat template nor a token for filling."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, **{"bos_token": special[0], "eos_token": special[-1], **options}
    )
