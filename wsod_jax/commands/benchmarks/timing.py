"""Measuring: medians of finished work, memory of compiled programs, and the name of the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measured number.

    Attributes:
      name: what was measured.
      value: the number.
      unit: of the number; "x" for a ratio (how many times faster or smaller).
      note: how it came about, where the name does not say so.
    """

    name: str
    value: float
    unit: str
    note: str = ""


def seconds(function: Callable, *arguments, repeats: int, warm_up: bool = True) -> float:
    """Return the median duration of `function(*arguments)`, results ready, in seconds.

    Args:
      function: what to time; compile it first (`compiled`).
      *arguments: passed on.
      repeats: timed calls, >= 1.
      warm_up: call once before, untimed.
    """
    if warm_up:
        jax.block_until_ready(function(*arguments))
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def compiled(function: Callable, *arguments) -> jax.stages.Compiled:
    """Compile a function for these arguments, so that no timing contains it."""
    return jax.jit(function).lower(*arguments).compile()


def working_mib(program: jax.stages.Compiled) -> float:
    """Return the memory a compiled program uses in addition to its arguments and results, in MiB."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def hardware() -> dict[str, str | int]:
    """Name what the numbers were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "num_devices": jax.device_count(),
        "cpu": cpu_model(),
        "instructions": instruction_set(),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """Return the widest vector instructions, and the flags that tell XLA to use others."""
    flags = _cpuinfo("flags").split()
    widest = next((f for f in ("avx512f", "avx2", "avx", "sse4_2") if f in flags), "")
    return f"{widest or platform.machine()} {os.environ.get('XLA_FLAGS', '')}".strip()


def _cpuinfo(name: str) -> str:
    """Return what Linux tells of the first processor, "" elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
