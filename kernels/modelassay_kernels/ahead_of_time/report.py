"""The table of `kernels/RESOURCES.md`: what the code compiles to, and what that allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from modelassay_kernels.ahead_of_time.pretended import CARDS

HEAD = """# What the kernels compile to

Written by `python -m modelassay_kernels.ahead_of_time --write kernels/RESOURCES.md`; a nightly test checks that the code
still gives it. No GPU is needed and none was used: the ops' own host code launches on tensors without memory, Triton
compiles what it launches, and the machine code is read. Nothing here is a time.

- **registers**, **stack**: of a thread, and its spilled bytes; `in loop`: loads and stores of them in the loop below.
- **instructions**: a warp's, in one pass of the loop that reads or multiplies; per 16 bytes of device memory that each thread
  reads, or writes in whole words, or all warps' per MFLOP of the result. softmax_ggn's are those of both its visits to a
  column, of which the second reads from L2. Attention's forward pass has a loop for tiles that all rows see whole, which is
  counted, and a longer one with masks for the edges of spans: of 4,096 causal positions one tile in sixteen or fewer.
- **bound**: the share of the card's peak (of reading, or of multiplying) that cannot be passed: four instructions issue in a
  cycle and multiprocessor; between shared memory and registers go 128 bytes; HMMA, which multiplies from registers, has 0.62 of
  a Hopper's peak (Luo et al., arXiv 2402.13499), where HGMMA has all of it; of a Blackwell's, for want of a source, it is given
  the rate of sm_80. Latency, and what a loop waits for, are not in it, so what is reached is less. Where a loop has an inner one whose passes depend on the data, one pass of that is counted.
- **goal**: the share of the peak that the op is to reach; "missed" where the bound already forbids it.

Two Triton versions, one card after the other: torch 2.11 brings 3.6, torch 2.13 brings 3.7.
"""


def markdown(rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]] = ()) -> str:
    """Return the page; each row is one of `bounds.Row` with the Triton that compiled it."""
    return "\n".join([
        HEAD,
        *sections(rows).values(),
        *([BEFORE, *sections(before, "Before: ").values()] if before else []),
    ])


def with_rows(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return a page with these rows in place of those that it has of their cases.

    Raises:
        ValueError: the page has no such case for that card and Triton.
    """
    for part in sections(rows).values():
        title, _, table = part.partition("\n\n")
        start = page.find(f"{title}\n")
        end = page.find("\n\n", start + len(title) + 2)
        lines = page[start:end].split("\n")
        new = table.rstrip("\n").split("\n")[2:]
        for case in dict.fromkeys(_case(line) for line in new):
            old = [i for i, line in enumerate(lines) if _case(line) == case]
            if start < 0 or not old:
                raise ValueError(f"the page has no {', '.join(case)} under {title!r}; write all of it")
            lines[old[0] : old[-1] + 1] = [line for line in new if _case(line) == case]
        page = page[:start] + "\n".join(lines) + page[end:]
    return page


def _case(line: str) -> tuple[str, ...]:
    """Operation and case of a line of a table."""
    return tuple(cell.strip() for cell in line.split("|")[1:3])


def sections(rows: Sequence[dict[str, Any]], prefix: str = "") -> dict[tuple[int, str], str]:
    """Return the page's part for each card and Triton."""
    keys = sorted({(row["capability"], row["triton"]) for row in rows})
    return {
        (capability, version): f"## {prefix}sm_{capability} ({CARDS[capability].name}), Triton {version}\n\n"
        + _table([row for row in rows if (row["capability"], row["triton"]) == (capability, version)])
        for capability, version in keys
    }


BEFORE = """# Before

The same reading of the kernels as they were at commit e2ac8b4, from `benchmarks/results/resources-e2ac8b4.json`. Their tests
compiled other code, without the alignment that a launch has. Words written did not count, and softmax_ggn's second reading
did: as it is counted above, its 1,056 instructions are 176 per 16 bytes, and its bound on sm_90 0.59 where 0.78 is printed.
"""


def _table(rows: Iterable[dict[str, Any]]) -> str:
    head = "| op | case | kernel | tile | registers | stack (in loop) | shared KB | instructions | cost | with | bound | goal |"
    lines = [head, "|---" * 12 + "|"]
    for row in rows:
        cells = [row["op"], row["case"], row["kernel"], row["tile"], *(text(row) for text in CELLS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _goal(row: dict[str, Any]) -> str:
    return "" if not row["goal"] else f"{row['goal']:.2f}{' missed' if row['bound'] < row['goal'] else ''}"


CELLS = (
    lambda row: str(row["registers"]),
    lambda row: f"{row['spilled_bytes']} ({row['loop_spills']})" if row["spilled_bytes"] else "0",
    lambda row: f"{row['shared_bytes'] / 1024:.0f}",
    lambda row: str(row["instructions"]) if row["per"] else "",
    lambda row: f"{row['cost']:.0f} / {row['per']}" if row["per"] else "",
    lambda row: row["using"],
    lambda row: f"{row['bound']:.2f}" if row["per"] else "",
    _goal,
)
