"""Measure the speed and memory of the parts on this machine, and print them with the machine's name.

    python scripts/benchmark.py                         every task but `gpu`, a few minutes on a laptop
    python scripts/benchmark.py --task roi mining       some of them
    python scripts/benchmark.py --task gpu --out gpu.json

Times are medians over --repeats runs, compilation excluded. TensorFlow is needed by `input` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from wsod_jax.commands.command_line import make_parser, run_command

# task -> (module, function, what it measures)
TASKS = {
    "roi": ("kernels", "roi_pooling", "RoI max pooling against a masked maximum done RoI by RoI"),
    "nms": ("kernels", "suppression", "non-maximum suppression of 2 000 boxes against NumPy"),
    "mining": ("kernels", "mining", "OIM mining of 2 000 proposals against a literal NumPy oracle"),
    "soft_proposal": (
        "soft_proposal",
        "soft_proposal",
        "soft proposals against NumPy, on large maps, and as a share of VGG16's forward pass",
    ),
    "step": ("training", "step_on_cpu", "a training step of OIM with VGG16, split into its parts"),
    "input": ("pipeline", "input_rate", "images/s of the input pipeline, and of the step it feeds"),
    "compilations": (
        "pipeline",
        "compilations",
        "programs compiled by five-scale training and ten-view tests",
    ),
    "gpu": (
        "training",
        "step_on_accelerator",
        "the same step in float32 and bfloat16, as a share of peak",
    ),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    tasks = "\n".join(f"  {name:14s} {what}" for name, (_, _, what) in TASKS.items())
    parser = make_parser(f"{__doc__}\ntasks:\n{tasks}")
    default = [name for name in TASKS if name != "gpu"]
    parser.add_argument("--task", nargs="+", choices=TASKS, default=default, metavar="TASK")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per number (default 5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, found {options.repeats}")
    return options


def print_table(title: str, rows: list) -> None:
    """Print one task's measures, aligned."""
    print(f"\n{title}")
    width = max(len(row.name) for row in rows)
    for row in rows:
        value = f"{row.value:,.0f}" if abs(row.value) >= 1000 else f"{row.value:.4g}"
        print(f"  {row.name:{width}s} {value:>11s} {row.unit:9s} {row.note}".rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def run(options: argparse.Namespace) -> None:
    """Run the tasks asked for, print a table each, and write the JSON file."""
    from wsod_jax.commands.benchmarks.timing import hardware

    report = {
        "hardware": hardware(),
        "small": options.small,
        "repeats": options.repeats,
        "tasks": {},
    }
    print(", ".join(f"{name}: {value}" for name, value in report["hardware"].items()))
    for name in options.task:
        module, function, what = TASKS[name]
        started = time.perf_counter()
        measure = getattr(
            importlib.import_module(f"wsod_jax.commands.benchmarks.{module}"), function
        )
        rows = measure(small=options.small, repeats=options.repeats)
        print_table(f"{what} ({time.perf_counter() - started:.0f} s)", rows)
        report["tasks"][name] = [dataclasses.asdict(row) for row in rows]
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    if options.out:
        print(f"\nwritten to {options.out}")
