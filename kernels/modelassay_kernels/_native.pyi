from typing import TypeAlias

from torch import Tensor

BlockScale: TypeAlias = tuple[Tensor, int, int]  # scale [ceil(R / rows), ceil(C / cols)] fp32, rows and cols of a block

def bottom_k(
    rows: Tensor,
    code: str,
    values: Tensor,
    ids: Tensor,
    valid: Tensor | None,
    largest: bool,
    sort: bool,
    num_threads: int,
    instruction_set: str = "",
) -> None: ...
def bottom_k_capacity(k: int) -> int: ...
def bottom_k_fold(
    rows: Tensor,
    code: str,
    first_id: int,
    k: int,
    entries: Tensor,
    counts: Tensor,
    limits: Tensor,
    valid: Tensor | None,
    largest: bool,
    num_threads: int,
    instruction_set: str = "",
) -> None: ...
def bottom_k_finish(
    entries: Tensor,
    counts: Tensor,
    limits: Tensor,
    values: Tensor,
    ids: Tensor,
    largest: bool,
    sort: bool,
    num_threads: int,
) -> None: ...
def ask_for_large_pages(data: Tensor) -> None: ...
def instruction_sets() -> list[str]: ...
def threads_for(num_bytes: int, num_threads: int) -> int: ...

INSTRUCTION_SETS: list[str]

def layer_std(
    items: list[tuple[Tensor, str, BlockScale | None]],
    out: Tensor,
    correction: int,
    num_threads: int,
    instruction_set: str = "",
) -> None: ...
def layer_std_file(
    items: list[tuple[str, int, str, int, int, int, BlockScale | None]],
    out: Tensor,
    correction: int,
    num_threads: int,
    instruction_set: str = "",
) -> None: ...

NUM_READ_PATTERNS: int

def read_bytes(data: Tensor, num_threads: int, instruction_set: str = "", pattern: int = 0) -> int: ...
def softmax_ggn(
    logits: Tensor, u: Tensor, y: Tensor, dtype: str, num_threads: int, instruction_set: str = ""
) -> None: ...
