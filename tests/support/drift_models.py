"""A tiny model over bytes, with padding in its head."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

ROWS = 320  # 259 tokens and padding


def byte_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        attention_dropout=0.1,
    )
    return Qwen2ForCausalLM(config).to(dtype)
