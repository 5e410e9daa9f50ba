"""Draw proposals, detections, training curves, pseudo boxes and proposal maps.

Proposals over images, with the best one of every annotated object:

  wsod-jax visualize proposals --data VOCdevkit/VOC2007 --split test --proposals voc07.npz --out figures

Detections from a predictions file; true positives red, false positives yellow and dashed, annotated objects green:

  wsod-jax visualize detections --data VOCdevkit/VOC2007 --split test --predictions predictions.json \\
      --out figures

Detections in a plain folder of images (boxes in their classes' colors):

  wsod-jax visualize detections --data my_images --predictions predictions.json --out figures

Training curves of one or more runs in one chart:

  wsod-jax visualize curves --workdir runs/oicr runs/oim --out curves.png

Objects per image and class of one or more data sets:

  wsod-jax visualize instances --data VOCdevkit/VOC2007 VOCdevkit/VOC2012 --split trainval --out instances.png

Pseudo boxes that a run mines in its training images: seeds blue, other instances red, proposals that take their
labels thin:

  wsod-jax visualize pseudo --workdir runs/oim --truth --out figures

Quality of the pseudo boxes over training, as a table (needs annotated objects):

  wsod-jax visualize quality --workdir runs/oicr runs/oim --steps 200 400 600 --num 60

OIM's spatial and appearance graphs, from which it mines:

  wsod-jax visualize graphs --workdir runs/oim --step 4000 --images 000012 --out figures

Objectness maps, the summed scores of the boxes of a class, over training, of one or more runs:

  wsod-jax visualize objectness --workdir runs/oicr runs/oim --num 8 --out figures

Proposal maps of SPN and class activation maps over training, of one or more runs:

  wsod-jax visualize proposal_maps --workdir runs/spn runs/cam --class cow --num 8 --out figures

The random walk of a proposal map step by step, its convergence, and the stationary map:

  wsod-jax visualize walk --workdir runs/spn --walk_steps 0 1 2 5 20 --out figures

Object Energy, the share of a proposal map or of the proposals that lies on objects, by object size and over training:

  wsod-jax visualize energy --workdir runs/spn runs/cam --proposals voc07.npz --out charts
  wsod-jax visualize energy --data VOCdevkit/VOC2007 --split test --proposals voc07.npz --out charts
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from wsod_jax.commands.command_line import add_set_argument, make_parser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def run(options: argparse.Namespace) -> None:
    """Draw what is asked for."""
    module, function = options.shown_by  # imported here: it brings JAX, which --help does without
    show = getattr(importlib.import_module(f"wsod_jax.commands.visualization.{module}"), function)
    show(options)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, module: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(shown_by=(module, f"show_{name}"))
        return added

    add_data_commands(command)
    add_mining_commands(command)
    add_map_commands(command)
    return parser.parse_args(arguments)


def add_data_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that read files and run no model."""
    proposals = command("proposals", "files", "proposals over images")
    proposals.add_argument("--proposals", type=Path, required=True, help="an .npz proposals file")
    detections = command("detections", "files", "detections from a predictions file")
    detections.add_argument(
        "--predictions", type=Path, required=True, help="a predictions.json (COCO results format)"
    )
    detections.add_argument(
        "--score_thr", type=float, default=0.5, help="show boxes with at least this score (0.5)"
    )
    detections.add_argument(
        "--iou_thr",
        type=float,
        default=0.5,
        help="IoU above which a detection is a true positive (0.5)",
    )
    detections.add_argument("--max_boxes", type=int, default=20, help="most boxes in an image (20)")
    for figures in (proposals, detections):
        figures.add_argument(
            "--data", type=Path, required=True, help="a folder in VOC layout, or a folder of images"
        )
        figures.add_argument("--split", help="VOC layout only: test, trainval ...")
        add_choice_arguments(figures)

    curves = command("curves", "files", "training curves of one or more runs")
    curves.add_argument(
        "--workdir", nargs="+", type=Path, required=True, help="folders of runs, a line for each"
    )
    curves.add_argument(
        "--names", nargs="+", help='scalars to show; "loss/" means all that start so (all)'
    )
    curves.add_argument("--smoothing", type=int, default=1, help="running mean over points (1)")
    curves.add_argument("--out", type=Path, required=True, help="the image file to write")

    instances = command("instances", "files", "objects per image and class, as bars")
    instances.add_argument(
        "--data", nargs="+", type=Path, required=True, help="folders in VOC layout, same classes"
    )
    instances.add_argument("--split", default="trainval", help="the split of each (trainval)")
    instances.add_argument("--out", type=Path, required=True, help="the image file to write")


def add_mining_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that load checkpoints of runs with proposals."""
    pseudo = command("pseudo", "mining_runs", "pseudo boxes that a run mines, stage by stage")
    pseudo.add_argument("--truth", action="store_true", help="also draw the annotated objects")
    graphs = command("graphs", "mining_runs", "OIM's spatial and appearance graphs")
    graphs.add_argument(
        "--num_rejected",
        type=int,
        default=4,
        help="rejected proposals to draw, the nearest, dashed (4)",
    )
    for mining in (pseudo, graphs):
        add_checkpoint_arguments(mining)
        add_location_argument(mining)
        add_choice_arguments(mining)

    quality = command("quality", "mining_runs", "precision, recall and size of the boxes mined")
    quality.add_argument(
        "--workdir", nargs="+", type=Path, required=True, help="folders of runs that mine"
    )
    quality.add_argument("--steps", nargs="+", type=int, help="checkpoints (all but the first)")
    quality.add_argument("--num", type=int, default=60, help="training images, evenly spread (60)")
    quality.add_argument("--images", nargs="+", metavar="ID", help="these training images instead")
    add_location_argument(quality)

    objectness = command("objectness", "mining_runs", "objectness maps of a class over training")
    objectness.add_argument(
        "--workdir", nargs="+", type=Path, required=True, help="folders of runs, a row for each"
    )
    objectness.add_argument(
        "--steps", nargs="+", type=int, help="checkpoints (a handful, evenly spread)"
    )
    objectness.add_argument(
        "--class", dest="class_name", help="of which class (the image's best-scored label)"
    )
    objectness.add_argument("--split", help="of the run's data (its training split)")
    objectness.add_argument("--max_boxes", type=int, default=3, help="detections per map (3)")
    add_settings_argument(objectness)
    add_choice_arguments(objectness)


def add_map_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that load checkpoints of runs that localize by maps."""
    maps = command("proposal_maps", "map_runs", "proposal and class activation maps over training")
    maps.add_argument("--steps", nargs="+", type=int, help="checkpoints (a handful, evenly spread)")
    maps.add_argument(
        "--class", dest="class_name", help="whose activations (the image's best-scored label)"
    )
    walk = command("walk", "map_runs", "the random walk that makes a proposal map")
    add_checkpoint_arguments(walk)
    walk.add_argument(
        "--walk_steps",
        nargs="+",
        type=step_count,
        default=[0, 1, 2, 3, 5, 10, 20],
        help="numbers of steps after which the map is shown (0 1 2 3 5 10 20)",
    )
    energy = command(
        "energy",
        "map_runs",
        "Object Energy over the objects' size and training, or of proposals files alone; their boxes count by their "
        "scores, boxes without scores 1 each",
    )
    energy.add_argument("--steps", nargs="+", type=int, help="checkpoints (all)")
    energy.add_argument(
        "--proposals", nargs="+", type=Path, default=[], help=".npz files to measure too"
    )
    energy.add_argument(
        "--num", type=int, default=40, help="images whose graph edges are measured (40)"
    )
    energy.add_argument("--out", type=Path, required=True, help="the folder to write into")
    measured = energy.add_mutually_exclusive_group(required=True)
    measured.add_argument("--data", type=Path, help="a folder in VOC layout, instead of runs")
    for several, else_empty in ((maps, {"required": True}), (measured, {"default": []})):
        several.add_argument(
            "--workdir", nargs="+", type=Path, help="folders of runs, to compare", **else_empty
        )
    for figures in (maps, walk):
        add_choice_arguments(figures)
    for parser in (maps, walk, energy):
        parser.add_argument("--split", help="of the data (the first run's test split)")
        add_settings_argument(parser)


def step_count(text: str) -> int:
    """Read how many steps a walk takes."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps such as 0 or 20")
    return int(text)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of one checkpoint."""
    parser.add_argument(
        "--workdir",
        type=Path,
        required=True,
        help="folder of a run (its newest checkpoint), or of one checkpoint",
    )
    parser.add_argument("--step", type=int, help="which checkpoint of the run")


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set` for commands that test a run: test settings and file locations can be changed."""
    add_set_argument(
        parser,
        'change a test setting, e.g. --set "scales=(480,)", or where the data lie now (repeatable)',
    )


def add_location_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set` for commands that reproduce a training step: only file locations can be changed."""
    add_set_argument(
        parser, "where the data lie now, e.g. --set data.root=/data/VOCdevkit (repeatable)"
    )


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all commands that draw over images share."""
    parser.add_argument("--out", type=Path, required=True, help="the folder to write into")
    parser.add_argument(
        "--num", type=int, default=16, help="images to draw, spread over the set (16)"
    )
    parser.add_argument("--images", nargs="+", metavar="ID", help="draw these images instead")
