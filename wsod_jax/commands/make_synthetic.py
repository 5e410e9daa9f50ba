"""Draw a synthetic detection set and write it as an ordinary VOC tree.

The set is small and has the difficulties of weakly supervised detection: several objects of a class in an image,
objects whose class shows only in a small patterned head, clutter, distractors, backgrounds that go with a class.

  wsod-jax make_synthetic --out data/synthetic                # 300 images to train on, 150 to test on
  wsod-jax make_synthetic --out data/objects --pretraining    # one object per image, to pretrain a backbone

The same options always give the same set; running again on a finished set does nothing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from wsod_jax.commands.command_line import make_parser, run_command
from wsod_jax.data.synthetic.dataset import (
    SyntheticSpec,
    pretraining_spec,
    split_ids,
    write_synthetic,
)
from wsod_jax.data.synthetic.objects import CATALOGUE

DEFAULT = SyntheticSpec()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the set into")
    parser.add_argument(
        "--seed", type=int, default=DEFAULT.seed, help="random seed; every seed gives another set"
    )
    parser.add_argument("--num_trainval", type=int, help="images to train and validate on (300)")
    parser.add_argument("--num_test", type=int, help="images to test on (150)")
    parser.add_argument("--size", type=int, default=DEFAULT.size, help="longer side, pixels (160)")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=DEFAULT.classes,
        help=f"out of: {', '.join(CATALOGUE)} (all)",
    )
    parser.add_argument(
        "--pretraining",
        action="store_true",
        help="one larger object per image and another seed: images to pretrain a classifier on "
        "(1200 + 200 images unless told otherwise)",
    )
    difficulty = parser.add_argument_group("difficulty")
    for name, text in (
        ("part_contrast", "contrast of the parts that tell the class, 0..1"),
        ("body_contrast", "contrast of the class-specific texture of bodies, 0..1"),
        ("clutter", "strength of the background's texture, 0..1"),
        ("context", "probability that the background is that of a class in the image, 0..1"),
        ("max_overlap", "highest overlap of two objects, 0..1"),
        ("two_classes", "probability of two classes in an image, 0..1"),
    ):
        default = getattr(DEFAULT, name)
        difficulty.add_argument(
            f"--{name}", type=float, default=default, help=f"{text} ({default:g})"
        )
    difficulty.add_argument(
        "--object_side",
        type=float,
        nargs=2,
        metavar=("SMALL", "LARGE"),
        help="over the image's side",
    )
    return parser.parse_args(arguments)


def build_spec(options: argparse.Namespace) -> SyntheticSpec:
    """Return the specification of the set."""
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name not in ("out", "pretraining") and value is not None
    }
    spec = dataclasses.replace(DEFAULT, **values)
    if not options.pretraining:
        return spec
    chosen = {
        key: values[key] for key in ("num_trainval", "num_test", "object_side") if key in values
    }
    return dataclasses.replace(pretraining_spec(spec), **chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def run(options: argparse.Namespace) -> None:
    """Draw the set, and say what it holds."""
    spec = build_spec(options)
    bar = lambda names: tqdm(names, unit="image", disable=not sys.stderr.isatty())  # noqa: E731
    written = write_synthetic(options.out, spec, progress=bar)
    if not written:
        print(f"{options.out} is already complete; nothing to do.")
        return
    print(f"Wrote {spec.num_trainval + spec.num_test} images of {spec.size} px to {options.out}")
    for split, names in split_ids(spec).items():
        print(f"  {split:9s}{len(names):5d} images")
    main_sets = options.out / "ImageSets" / "Main"
    for name in spec.classes:
        lines = (main_sets / f"{name}_trainval.txt").read_text().splitlines()
        counts = collections.Counter(line.split()[1] for line in lines)
        print(f"  {name:9s}{counts['1']:5d} trainval images")
