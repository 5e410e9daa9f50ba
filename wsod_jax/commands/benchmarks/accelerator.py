"""The methods on an accelerator: training and predict steps at published size, their parts, pooling and NMS.

One program after another; each leaves a row as it ends, so that what is measured is kept whatever happens next.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

from wsod_jax.commands.benchmarks.counting import host_calls
from wsod_jax.commands.benchmarks.programs import MATRIX, Program, Ready, programs
from wsod_jax.commands.benchmarks.rows import Options, Row, line
from wsod_jax.errors import DataError

GIB = 2**30
LIMIT_S = 30.0  # timed runs of one program end after this many seconds, even if more were asked for


def measure(options: Options, save: Callable[[list[Row]], None]) -> list[Row]:
    """Run one program after another within the budget.

    Args:
      options: what to measure.
      save: called with all rows at the start, when all are "not run", and after every program.

    Returns:
      A row for every program, in order.

    Raises:
      DataError: the file of batches cannot be used.
    """
    started = time.monotonic()
    planned = programs(options)
    rows, peaks = [program.row for program in planned], {}
    save(rows)
    for number, program in enumerate(planned):
        if time.monotonic() - started > options.budget:
            break
        row = run_program(program, options.repeats, peaks.get(program.row.dtype))
        if program.row.program == MATRIX and row.status == "done":
            peaks[row.dtype] = 1e12 * row.tflop / (row.ms / 1e3)
            row = dataclasses.replace(row, share=1.0)
        rows[number] = row
        save(rows)
        print(line(row), flush=True)
    return rows


def run_program(program: Program, repeats: int, peak: float | None) -> Row:
    """Compile and time one program; whatever goes wrong in it becomes its row's error.

    Args:
      program: what to run.
      repeats: timed runs.
      peak: operations per second of a large matrix product; `None` if it is not known.
    """
    try:
        ready = program.prepare()
        before = device_peak()
        started = time.perf_counter()
        compiled = ready.function.lower(*ready.arguments).compile()
        compile_s = time.perf_counter() - started
        duration = timed(compiled, ready, repeats)
        reserved, after = program_bytes(compiled), device_peak()
        grown = after is not None and after > (before or 0)
    except DataError:
        raise
    except Exception as error:  # out of memory, a compiler's bug: the next program may do better
        text = (str(error).strip() or "no message").splitlines()[0]
        text = f"{type(error).__name__}: {text}"[:300]
        return dataclasses.replace(program.row, status="failed", error=text)
    flops = ready.flops
    return dataclasses.replace(
        program.row,
        status="done",
        ms=1e3 * duration,
        compile_s=compile_s,
        tflop=flops / 1e12 if flops else None,
        share=flops / duration / peak if flops and peak else None,
        memory_gib=(after if grown else reserved) / GIB,
        memory_of="device" if grown else "program",
        host=host_calls(compiled),
    )


def timed(compiled: jax.stages.Compiled, ready: Ready, repeats: int) -> float:
    """Return the median seconds of a run after a first one that is not counted."""
    arguments, durations = ready.arguments, []
    first = time.perf_counter()
    while len(durations) < 1 + repeats:
        started = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))
        durations.append(time.perf_counter() - started)
        arguments = ready.again(arguments, results)
        if len(durations) > 1 and time.perf_counter() - first > LIMIT_S:
            break
    return statistics.median(durations[1:])


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Return what the compiler reserves: arguments, results and temporary memory."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def device_peak() -> int | None:
    """Return the highest number of bytes in use on the device so far, `None` where it does not count them."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
