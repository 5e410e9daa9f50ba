"""List the files that training or evaluating a configuration goes through.

    wsod-jax trace_files                                          # OIM on VGG16
    wsod-jax trace_files --config spn_vgg16_voc07
    wsod-jax trace_files --walk evaluate                          # from the images to the report

One update of a configuration for VOC runs on a few small rendered images, with narrow fully connected layers and
drawn weights; `--walk evaluate` then evaluates it, and counts from opened run and read split on, without figures. A
file counts if one of its functions runs; what runs while it is imported does not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from wsod_jax.commands.command_line import (
    CONFIGS,
    PACKAGE,
    load_config,
    make_parser,
    run_command,
)

FOLDERS = (PACKAGE, CONFIGS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config",
        default="oim_ir_vgg16_voc07",
        metavar="CONFIG[:VARIANT]",
        help="a configuration that reads the VOC layout (oim_ir_vgg16_voc07)",
    )
    parser.add_argument(
        "--walk", choices=("train", "evaluate"), default="train", help="what to follow (train)"
    )
    return run_command(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Run one update and print which files it went through."""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(path.relative_to(PACKAGE.parent) for path in traced(options, Path(folder)))
    for path in files:
        print(path)
    print(f"{len(files)} files")


def traced(options: argparse.Namespace, folder: Path) -> set[Path]:
    """Return the files of the package and of configs/ in which a function runs."""
    import jax  # imported here, as all that brings it: --help does without

    from wsod_jax import build, runs
    from wsod_jax.data.proposals.selective_search import SearchOptions, run_selective_search
    from wsod_jax.data.readers.voc import Voc
    from wsod_jax.data.synthetic.dataset import SyntheticSpec, write_synthetic

    data, proposals = folder / "data", folder / "proposals.npz"
    num_images = max(4, jax.device_count())
    write_synthetic(data, SyntheticSpec(num_trainval=num_images, num_test=2, size=96))
    reader = Voc(root=str(data))
    images = [reader.images(split) for split in ("trainval", "test")]
    both = dataclasses.replace(images[0], records=images[0].records + images[1].records)
    run_selective_search(both, proposals, options=SearchOptions(min_side=6.0))

    def train() -> None:
        values = small(load_config(options.config), data, proposals, jax.device_count())
        runs.train(build.read_config(values), folder / "run")

    if options.walk == "train":
        found = executed(train)
    else:
        train()
        found = executed(evaluation_of(folder))
    paths = {Path(name).resolve() for name in found if name.endswith(".py")} - {Path(__file__)}
    return {path for path in paths if any(path.is_relative_to(folder) for folder in FOLDERS)}


def executed(action: Callable[[], object]) -> set[str]:
    """Return the names of the files in which a function runs during an action."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_name != "<module>":
            found.add(frame.f_code.co_filename)

    threading.settrace(note)
    sys.settrace(note)
    try:
        action()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return found


def evaluation_of(folder: Path) -> Callable[[], object]:
    """Return the evaluation of the run in a folder, up to its report."""
    from wsod_jax import runs
    from wsod_jax.evaluation.report import Report, write_report
    from wsod_jax.runs.annotated_images import AnnotatedImages
    from wsod_jax.runs.scoring import evaluate_pass
    from wsod_jax.runs.training_data import read_proposals

    predictor = runs.load_run(folder / "run")
    predictor = predictor.with_settings(scales=(96,), flips=(False,), micro_batch=1, passes={})
    reader, proposals = predictor.config.data, read_proposals(predictor.config)
    data = AnnotatedImages.read(reader, "test")

    def evaluate() -> None:
        outcome = evaluate_pass("test", [predictor], data, proposals, folder)
        names, found = data.images.class_names, [*outcome.evaluations.values()]
        write_report(folder, Report("walk", names, {}, found))

    return evaluate


def small(values: dict, data: Path, proposals: Path, num_devices: int) -> dict:
    """Return a configuration's values with one short update on small images, one for each device."""
    values["data"] |= {"root": str(data), "year": None}
    values["train"] |= {"num_steps": 1, "scales": (96,), "init_from": (), "loader": "threads"}
    values["train"] |= {"micro_batch": num_devices, "accumulate": 1}
    values["optim"] |= {"decay_steps": ()}
    values["optim"].pop("momentum_reset_steps", None)
    values["log"] |= {"image_interval": 0, "tensorboard": False}
    if values.get("proposals"):
        values["proposals"] |= {"path": str(proposals), "max_proposals": 64}
        values["method"]["box_head"] = {"dims": (32, 32)}
    return values
