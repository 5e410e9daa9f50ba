"""What is measured on an accelerator and what is known of each program, in memory, on the terminal and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from wsod_jax.commands.benchmarks.published import DEFAULT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
      methods: names in `published.METHODS`, in the order in which they are measured.
      budget: seconds after which no further program starts.
      repeats: timed runs of each.
      small: tiny sizes.
      batches: file of stored batches to take instead of random ones.
    """

    methods: tuple[str, ...] = DEFAULT
    budget: float = 420.0
    repeats: int = 5
    small: bool = False
    batches: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one program.

    Attributes:
      program: what it computes, with the method's name where it belongs to one.
      dtype: of the computation.
      size: of its input, in words.
      status: "done", "failed" or "not run".
      ms: median duration of a run, compilation and first run excluded.
      compile_s: seconds of tracing and compilation.
      tflop: the model's operations on valid pixels and real proposals, in 10^12.
      share: these per second over the measured rate of a large matrix product in the same dtype.
      memory_gib: highest memory in use.
      memory_of: "device", measured, or "program", what the compiler reserves for it, input and output included.
      host: operations of the program that visit the host; none is as it should be.
      error: why it failed.
    """

    program: str
    dtype: str
    size: str = ""
    status: Literal["done", "failed", "not run"] = "not run"
    ms: float | None = None
    compile_s: float | None = None
    tflop: float | None = None
    share: float | None = None
    memory_gib: float | None = None
    memory_of: Literal["device", "program"] | None = None
    host: tuple[str, ...] = ()
    error: str = ""


def line(row: Row) -> str:
    """Return a row for the terminal."""
    if row.status == "failed":
        return f"  {row.program} ({row.dtype}, {row.size}): failed, {row.error}"
    return "  " + " | ".join(cell for cell in cells_of(row) if cell)


def cells_of(row: Row) -> list[str]:
    """Return a row's cells for the table."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    memory = number(row.memory_gib, ".2f") + ("*" if row.memory_of == "program" else "")
    done = row.status == "done"
    return [
        row.program.strip(),
        row.dtype,
        row.size,
        number(row.ms, ",.3g" if row.ms is not None and row.ms < 1000 else ",.0f"),
        number(row.tflop, ".3g"),
        number(row.share, ".1%"),
        memory if done else "",
        number(row.compile_s, ".0f"),
        (", ".join(row.host) or "nothing") if done else "",
        "" if done else f"{row.status}: {row.error}" if row.error else row.status,
    ]


def markdown(rows: Sequence[Row], hardware: dict[str, Any], options: Options) -> str:
    """Return the table in Markdown, the hardware above it."""
    head = ["program", "type", "size", "ms", "Tflop", "of peak", "GiB", "compiled in s", "on host"]
    head.append("")
    source = "random batches" if options.batches is None else f"batches of {options.batches.name}"
    lines = [
        ", ".join(f"{name}: {value}" for name, value in hardware.items()),
        "",
        f"Medians of {options.repeats} runs on {source}{', tiny sizes' if options.small else ''}; no program started "
        f"after {options.budget:g} s. Tflop: of the model, on valid pixels and real proposals, over the rate of the "
        "matrix product of the same type. GiB: highest in use on the device so far; with *, what the compiler "
        "reserves.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|---|---|--:|--:|--:|--:|--:|---|---|",
    ]
    lines += [
        "| " + " | ".join(cell.replace("|", "/") for cell in cells_of(row)) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"
