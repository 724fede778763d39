"""Operations close to the hardware's limit: C++ on CPUs, Triton on GPUs, plain PyTorch as the reference.

Imports without a GPU, without Triton and without the compiled extension; each is a clear error only when it is needed.
"""

from modelassay_kernels.layer_std import layer_std

__all__ = ["layer_std"]
