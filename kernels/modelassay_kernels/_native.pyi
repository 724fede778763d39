from typing import TypeAlias

from torch import Tensor

BlockScale: TypeAlias = tuple[Tensor, int, int]  # scale [ceil(R / rows), ceil(C / cols)] fp32, rows and cols of a block

def instruction_sets() -> list[str]: ...
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
def read_bytes(data: Tensor, num_threads: int, instruction_set: str = "") -> int: ...
def softmax_ggn(
    logits: Tensor, u: Tensor, y: Tensor, dtype: str, num_threads: int, instruction_set: str = ""
) -> None: ...
