"""Measure the speed and memory of the parts on this machine.

    wsod-jax benchmark                         every task but `gpu`, a few minutes on a laptop
    wsod-jax benchmark --task roi mining       some of them
    wsod-jax benchmark --task gpu              the methods on an accelerator, into runs/benchmark_gpu.json

Times are medians over --repeats runs, compilation excluded. TensorFlow is needed by `input` alone.
`gpu` runs one program after another, in order of interest, and writes a JSON file and a Markdown table next to it
after each. No program starts once --budget seconds have gone by; the rest reads "not run".
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsod_jax.commands.command_line import make_parser, run_command
from wsod_jax.errors import ConfigError
from wsod_jax.files import atomic_write

# task -> (module, function, what it measures)
TASKS = {
    "roi": ("kernels", "roi_pooling", "RoI max pooling against a masked maximum done RoI by RoI"),
    "nms": ("kernels", "suppression", "non-maximum suppression of 2 000 boxes against NumPy"),
    "merging": (
        "merging",
        "merging",
        "merging 16 views of 2 000 proposals and 80 classes against NumPy; pasting masks",
    ),
    "mining": ("kernels", "mining", "OIM mining of 2 000 proposals against a literal NumPy oracle"),
    "soft_proposal": (
        "random_walk",
        "soft_proposal",
        "soft proposals against NumPy, on large maps, and as a share of VGG16's forward pass",
    ),
    "crf": (
        "kernels",
        "conditional_random_field",
        "dense CRF of a 64x64 map, exact, and of a 500x375 image, upsampled from a grid",
    ),
    "backbones": (
        "kernels",
        "laptop_backbones",
        "forward passes of SqueezeNet and EfficientNet-Lite0",
    ),
    "step": ("training", "step_on_cpu", "a training step of OIM with VGG16, split into its parts"),
    "localization_maps": (
        "training",
        "localization_maps",
        "WS-JDS's localization maps of 0 to 4 classes, as a share of WSDDN's gradient",
    ),
    "input": (
        "input_pipeline",
        "input_rate",
        "images/s of the input pipeline, and of the step it feeds",
    ),
    "gpu": (
        "accelerator",
        "measure",
        "training and predict steps at published size, their parts, pooling, NMS; bfloat16 and float32",
    ),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    tasks = "\n".join(f"  {name:14s} {what}" for name, (_, _, what) in TASKS.items())
    parser = make_parser(f"{__doc__}\ntasks:\n{tasks}")
    default = [name for name in TASKS if name != "gpu"]
    parser.add_argument("--task", nargs="+", choices=TASKS, default=default, metavar="TASK")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per number (default 5)")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to see whether everything runs"
    )
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    group = parser.add_argument_group("task gpu")
    group.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="which methods, in which order (default oim_ir spn; also mist, pcl, oicr, wsddn, ws_jds)",
    )
    group.add_argument(
        "--budget", type=float, default=420, help="seconds after which no program starts (420)"
    )
    group.add_argument(
        "--batches", type=Path, help="file of data.arrays.save_batches to take instead of noise"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, found {options.repeats}")
    if options.out is None and "gpu" in options.task:
        options.out = Path("runs/benchmark_gpu.json")
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

    def save(name: str, rows: Sequence[Any]) -> None:
        report["tasks"][name] = [dataclasses.asdict(row) for row in rows]
        if options.out:
            with atomic_write(options.out) as file:
                file.write(json.dumps(report, indent=2) + "\n")

    print(", ".join(f"{name}: {value}" for name, value in report["hardware"].items()))
    for name in options.task:
        module, function, what = TASKS[name]
        started = time.perf_counter()
        measure = getattr(
            importlib.import_module(f"wsod_jax.commands.benchmarks.{module}"), function
        )
        if name == "gpu":
            measure_accelerator(options, report["hardware"], measure, functools.partial(save, name))
            continue
        rows = measure(small=options.small, repeats=options.repeats)
        print_table(f"{what} ({time.perf_counter() - started:.0f} s)", rows)
        save(name, rows)
    if options.out:
        print(f"\nwritten to {options.out}")


def measure_accelerator(
    options: argparse.Namespace,
    hardware: dict[str, Any],
    measure: Callable,
    save: Callable[[Sequence[Any]], None],
) -> None:
    """Run the task `gpu`: rows are saved, and a table is written next to them, as each ends."""
    from wsod_jax.commands.benchmarks.published import DEFAULT, METHODS
    from wsod_jax.commands.benchmarks.rows import Options, markdown

    methods = tuple(options.methods or DEFAULT)
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"--methods {name}: unknown; there are {', '.join(METHODS)}")
    asked = Options(
        methods=methods,
        budget=options.budget,
        repeats=options.repeats,
        small=options.small,
        batches=options.batches,
    )

    def keep(rows: Sequence[Any]) -> None:
        save(rows)
        with atomic_write(options.out.with_suffix(".md")) as file:
            file.write(markdown(rows, hardware, asked))

    print("\n" + markdown(measure(asked, keep), hardware, asked))
