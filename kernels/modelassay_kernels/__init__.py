"""Operations close to the hardware's limit: C++ on CPUs, Triton on GPUs, plain PyTorch as the reference.

Imports without a GPU, without Triton and without the compiled extension; each is a clear error only when it is needed.
"""

from modelassay_kernels.attention import attention, attention_over_spans
from modelassay_kernels.attention_transformers import register_attention
from modelassay_kernels.layer_std import layer_std
from modelassay_kernels.layer_std_file import FileSpan, layer_std_file
from modelassay_kernels.native import native_available, read_bandwidth, require_native

__all__ = [
    "FileSpan",
    "attention",
    "attention_over_spans",
    "layer_std",
    "layer_std_file",
    "native_available",
    "read_bandwidth",
    "register_attention",
    "require_native",
]
