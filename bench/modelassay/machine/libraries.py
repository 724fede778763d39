"""What torch and NumPy are told by the environment before they are loaded: every command says it first, so nothing else is imported here."""

from __future__ import annotations

from collections.abc import MutableMapping


def set_up(environ: MutableMapping[str, str]) -> None:
    """Say how torch takes memory and how many cores NumPy uses, unless ``environ`` says otherwise."""
    ask_for_large_pages(environ)
    leave_cores_to_others(environ)


def ask_for_large_pages(environ: MutableMapping[str, str]) -> None:
    """Have torch take large tensors from huge pages, unless ``environ`` says otherwise; to be called before torch makes one.

    A large tensor is new memory each time, and on a virtual machine getting it in pages of 4 KiB can cost more than computing it:
    filling and adding 128 Mi numbers, 1.5 processor seconds against 0.4. The variable is torch's own (c10/core/impl/alloc_cpu.cpp); where
    the system has no huge pages to give on request it changes nothing.
    """
    environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def leave_cores_to_others(environ: MutableMapping[str, str]) -> None:
    """Have NumPy's OpenBLAS compute on the thread that calls it, unless ``environ`` says otherwise; to be called before NumPy is imported.

    Its products here are small, and its own threads wait for the next one on a core that others could use: of two cells at a time each
    took seven times as long, and layers in two threads of which both multiply took no less time than in one. torch keeps its own number.
    """
    environ.setdefault("OPENBLAS_NUM_THREADS", "1")
