"""Train a detector from image-level labels.

    wsod-jax train --config oim_ir_vgg16_voc07 --workdir runs/oim_ir
    wsod-jax train --config synthetic:oicr --workdir runs/oicr --config.optim.learning_rate=2e-4

The same command resumes an interrupted run where it stopped. The workdir gets config.json, metrics.jsonl,
tensorboard/, checkpoints/ and figures/ of fixed training images with their pseudo boxes. A config may take a
variant after a colon, and every value in it can be set on the command line as --config.section.key=value.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from wsod_jax.commands.command_line import (
    command_text,
    load_config,
    make_parser,
    parse_with_overrides,
    run_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    again = command_text(arguments)
    return run_command(
        functools.partial(run, resume_command=again),
        options,
        # outside the loop over updates, or a second Ctrl-C
        interrupted=f"interrupted; to go on from the last checkpoint: {again}",
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `overrides` holds the settings in it."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config",
        required=True,
        metavar="CONFIG[:VARIANT]",
        help="path of a configuration file or name of a shipped one, and its variant if it has any; --config.a.b=c "
        "changes a value of it",
    )
    parser.add_argument(
        "--workdir", required=True, help="folder of this run; an existing one is resumed"
    )
    processes = parser.add_argument_group("several processes (found out where a cluster says so)")
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    processes.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    processes.add_argument("--process_id", type=int, metavar="I", help="which this one is, from 0")
    parser.add_argument("--set", metavar="KEY=VALUE", help=argparse.SUPPRESS)  # of other commands
    options = parse_with_overrides(parser, arguments)
    if options.set is not None:
        parser.error(
            f"--set changes trained runs; to train, write --config.{options.set.removeprefix('config.')}"
        )
    return options


def run(options: argparse.Namespace, *, resume_command: str) -> None:
    """Train as the arguments say."""
    from absl import logging  # what orbax writes its messages with

    from wsod_jax import build, runs
    from wsod_jax.train import distributed

    logging.set_verbosity(logging.WARNING)  # else every checkpoint brings a page of messages
    distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    values, notes = build.override(load_config(options.config), options.overrides)
    for note in notes:
        print(note)
    config = build.read_config(values)
    runs.train(config, Path(options.workdir), resume_command=resume_command)
