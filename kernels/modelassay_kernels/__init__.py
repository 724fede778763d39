"""Operations close to the hardware's limit: C++ on CPUs, Triton on GPUs, plain PyTorch as the reference.

A folder for each operation: what is called (`__init__`), its definition (`reference`), the CPU's and the GPU's code, what it
cannot avoid (`work`) and its `benchmark`; ``python -m modelassay_kernels.benchmarking`` runs all benchmarks.

Imports without a GPU, without Triton and without the compiled extension; each is a clear error only when it is needed.
"""

import modelassay_kernels.compiled  # noqa: F401 - registers the operations
from modelassay_kernels.attention import attention, attention_over_spans
from modelassay_kernels.attention.transformers import register_attention
from modelassay_kernels.bottom_k import bottom_k, linear_bottom_k
from modelassay_kernels.cross_entropy import linear_cross_entropy
from modelassay_kernels.layer_std import FileSpan, layer_std, layer_std_file
from modelassay_kernels.native import native_available, read_bandwidth, require_native
from modelassay_kernels.softmax_ggn import softmax_ggn

__all__ = [
    "FileSpan",
    "attention",
    "attention_over_spans",
    "bottom_k",
    "layer_std",
    "layer_std_file",
    "linear_bottom_k",
    "linear_cross_entropy",
    "native_available",
    "read_bandwidth",
    "register_attention",
    "require_native",
    "softmax_ggn",
]
