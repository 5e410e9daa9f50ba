"""Look at proposals, detections, training curves and data sets, at what a detector learnt from, and at proposal maps.

Proposals over pictures, with the best one of every annotated object:

  python scripts/visualize.py proposals --data VOCdevkit/VOC2007 --split test --proposals voc07.npz --out pictures

Detections from a predictions file; hits red, false ones yellow and dashed, annotated objects green:

  python scripts/visualize.py detections --data VOCdevkit/VOC2007 --split test --predictions predictions.json \\
      --out pictures

Detections in a plain folder of pictures (boxes in their classes' colours):

  python scripts/visualize.py detections --data my_pictures --predictions predictions.json --out pictures

Training curves of one or more runs in one chart:

  python scripts/visualize.py curves runs/oicr runs/oim --out curves.png

How many objects of a class an image holds, for one or more data sets:

  python scripts/visualize.py instances --data VOCdevkit/VOC2007 VOCdevkit/VOC2012 --split trainval --out instances.png

What a run mines in its training images: cores blue, further instances red, the proposals that learn from them thin:

  python scripts/visualize.py pseudo --checkpoint runs/oim --truth --out pictures

How good those boxes were over training, as a table (needs annotated objects):

  python scripts/visualize.py quality --workdir runs/oicr runs/oim --steps 200 400 600 --num 60

How OIM found those instances, along its spatial and appearance graphs:

  python scripts/visualize.py graphs --checkpoint runs/oim --step 4000 --images 000012 --out pictures

Where the scores of a class pile up over the course of training, of one or more runs:

  python scripts/visualize.py objectness --workdir runs/oicr runs/oim --num 8 --out pictures

How the proposal maps of SPN and a class's response maps evolved over the course of training, of one or more runs:

  python scripts/visualize.py proposal_maps --workdir runs/spn runs/cam --class cow --num 8 --out pictures

The random walk that makes a proposal map, step by step, whether it settles, and the map it would settle to:

  python scripts/visualize.py walk --checkpoint runs/spn --walk_steps 0 1 2 5 20 --out pictures

Which share of proposal maps, and of proposals, lies on objects: against the objects' size, and over training:

  python scripts/visualize.py energy --workdir runs/spn runs/cam --proposals voc07.npz --out charts
  python scripts/visualize.py energy --data VOCdevkit/VOC2007 --split test --proposals voc07.npz --out charts
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.data.proposals import ProposalSet, check_proposals
from wsod_jax.data.records import ImageRecord
from wsod_jax.data.voc import Voc
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.pictures import draw_image_detections, draw_precision_recall
from wsod_jax.evals.predictions import read_index, read_predictions
from wsod_jax.evals.tables import TruthTable
from wsod_jax.evals.voc import evaluate_detections
from wsod_jax.experiment import LOCATIONS
from wsod_jax.inspection.scores import MAX_STEPS
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.train.logging import read_jsonl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.visualization.images import read_images, write_pictures
from scripts.visualization.map_runs import show_energy, show_proposal_maps, show_walk
from scripts.visualization.mining_runs import (
    show_graphs,
    show_objectness,
    show_pseudo,
    show_quality,
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    add_data_commands(command)
    add_mining_commands(command)
    add_map_commands(command)
    return parser.parse_args(arguments)


def add_data_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that look at files and run no model."""
    proposals = command("proposals", show_proposals, "proposals over pictures")
    proposals.add_argument("--proposals", type=Path, required=True, help="an .npz proposals file")
    detections = command("detections", show_detections, "detections from a predictions file")
    detections.add_argument(
        "--predictions", type=Path, required=True, help="a predictions.json (COCO results format)"
    )
    detections.add_argument(
        "--score_thr", type=float, default=0.5, help="show boxes with at least this score (0.5)"
    )
    detections.add_argument(
        "--iou_thr", type=float, default=0.5, help="a hit overlaps an object by more (0.5)"
    )
    detections.add_argument("--max_boxes", type=int, default=20, help="per picture, the best (20)")
    for pictures in (proposals, detections):
        pictures.add_argument(
            "--data", type=Path, required=True, help="a folder in VOC layout, or of pictures"
        )
        pictures.add_argument("--split", help="VOC layout only: test, trainval ...")
        add_choice_arguments(pictures)

    curves = command("curves", show_curves, "training curves of one or more runs")
    curves.add_argument("workdirs", nargs="+", type=Path, help="folders given to train.py")
    curves.add_argument(
        "--names", nargs="+", help='scalars to show; "loss/" means all that start so (all)'
    )
    curves.add_argument("--smoothing", type=int, default=1, help="running mean over points (1)")
    curves.add_argument("--out", type=Path, required=True, help="the picture to write")

    instances = command("instances", show_instances, "objects per image and class, as bars")
    instances.add_argument(
        "--data", nargs="+", type=Path, required=True, help="folders in VOC layout, same classes"
    )
    instances.add_argument("--split", default="trainval", help="the split of each (trainval)")
    instances.add_argument("--out", type=Path, required=True, help="the picture to write")


def add_mining_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that load checkpoints of runs with proposals."""
    pseudo = command("pseudo", show_pseudo, "pseudo boxes that a run mines, stage by stage")
    pseudo.add_argument("--truth", action="store_true", help="also draw the annotated objects")
    graphs = command("graphs", show_graphs, "OIM's spatial and appearance graphs")
    graphs.add_argument(
        "--num_rejected", type=int, default=4, help="proposals that just failed, dashed (4)"
    )
    for mining in (pseudo, graphs):
        add_checkpoint_arguments(mining)
        add_location_argument(mining)
        add_choice_arguments(mining)

    quality = command("quality", show_quality, "precision, recall and size of the boxes mined")
    quality.add_argument(
        "--workdir", nargs="+", type=Path, required=True, help="folders of runs that mine"
    )
    quality.add_argument("--steps", nargs="+", type=int, help="checkpoints (all but the first)")
    quality.add_argument("--num", type=int, default=60, help="training images, evenly spread (60)")
    quality.add_argument("--images", nargs="+", metavar="ID", help="these training images instead")
    add_location_argument(quality)

    objectness = command("objectness", show_objectness, "where scores pile up during training")
    objectness.add_argument(
        "--workdir", nargs="+", type=Path, required=True, help="folders of runs, a row for each"
    )
    objectness.add_argument(
        "--steps", nargs="+", type=int, help=f"checkpoints (up to {MAX_STEPS}, evenly spread)"
    )
    objectness.add_argument(
        "--class", dest="class_name", help="of which class (the image's best-scored label)"
    )
    objectness.add_argument("--split", help="of the run's data (its training split)")
    objectness.add_argument("--max_boxes", type=int, default=3, help="detections per map (3)")
    add_settings_argument(objectness)
    add_choice_arguments(objectness)


def add_map_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that load checkpoints of runs that localise by maps."""
    maps = command("proposal_maps", show_proposal_maps, "proposal and response maps over training")
    maps.add_argument(
        "--steps", nargs="+", type=int, help=f"checkpoints (up to {MAX_STEPS}, evenly spread)"
    )
    maps.add_argument(
        "--class", dest="class_name", help="whose responses (the image's best-scored label)"
    )
    walk = command("walk", show_walk, "the random walk that makes a proposal map")
    add_checkpoint_arguments(walk)
    walk.add_argument(
        "--walk_steps",
        nargs="+",
        type=step_count,
        default=[0, 1, 2, 3, 5, 10, 20],
        help="show the map after so many steps (0 1 2 3 5 10 20)",
    )
    energy = command(
        "energy",
        show_energy,
        "Object Energy over the objects' size and training, or of proposals files alone; their boxes count by their "
        "scores, boxes without scores 1 each",
    )
    energy.add_argument("--steps", nargs="+", type=int, help="checkpoints (all)")
    energy.add_argument(
        "--proposals", nargs="+", type=Path, default=[], help=".npz files to measure too"
    )
    energy.add_argument(
        "--num", type=int, default=40, help="images whose graphs' edges are looked at (40)"
    )
    energy.add_argument("--out", type=Path, required=True, help="the folder to write into")
    measured = energy.add_mutually_exclusive_group(required=True)
    measured.add_argument("--data", type=Path, help="a folder in VOC layout, instead of runs")
    for several, else_empty in ((maps, {"required": True}), (measured, {"default": []})):
        several.add_argument(
            "--workdir", nargs="+", type=Path, help="folders of runs, to compare", **else_empty
        )
    for pictures in (maps, walk):
        add_choice_arguments(pictures)
    for parser in (maps, walk, energy):
        parser.add_argument("--split", help="of the data (the first run's test split)")
        add_settings_argument(parser)


def step_count(text: str) -> int:
    """Read how many steps a walk takes."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps, such as 0 or 20")
    return int(text)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of one checkpoint."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="folder of a run (its newest checkpoint), or of one checkpoint",
    )
    parser.add_argument("--step", type=int, help="which checkpoint of the run")


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set` for commands that test: how they do it and where files lie can change."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='change a test setting, e.g. --set "scales=(480,)", or where the data lie now (repeatable)',
    )


def add_location_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set` for commands that look at training: nothing but where its files lie can change."""

    def location(text: str) -> str:
        if text.partition("=")[0] not in LOCATIONS:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed are {', '.join(LOCATIONS)}")
        return text

    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=location,
        metavar="KEY=VALUE",
        help="where the data lie now, e.g. --set data.root=/data/VOCdevkit (repeatable)",
    )


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all commands that draw over pictures share."""
    parser.add_argument("--out", type=Path, required=True, help="the folder to write into")
    parser.add_argument(
        "--num", type=int, default=16, help="pictures to draw, spread over the set (16)"
    )
    parser.add_argument("--images", nargs="+", metavar="ID", help="draw these images instead")


def show_proposals(options: argparse.Namespace) -> None:
    images, truth = read_images(options.data, options.split)
    proposals = ProposalSet.load(options.proposals)
    check_proposals(proposals, images)

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        boxes = proposals.get(record.image_id)
        if truth is None or not len(boxes):
            return viz.draw_proposals(image, boxes)
        objects = truth.of_image(index).boxes
        iou = pairwise_iou(objects, boxes)
        best, height = iou.argmax(axis=1), iou.max(axis=1)
        return viz.draw_proposals(
            image, boxes, truth_boxes=objects, best_index=best, best_iou=height
        )

    write_pictures(images, options, draw)


def show_detections(options: argparse.Namespace) -> None:
    images, truth = read_images(options.data, options.split)
    class_names = images.class_names or read_index(options.predictions).class_names
    detections = read_predictions(
        options.predictions, image_ids=images.image_ids, class_names=class_names
    )

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        return draw_image_detections(
            image,
            index,
            detections,
            truth,
            class_names=class_names,
            score_thr=options.score_thr,
            iou_thr=options.iou_thr,
            max_boxes=options.max_boxes,
        )

    write_pictures(images, options, draw)
    if truth is not None:
        metrics = evaluate_detections(detections, truth, iou_thrs=(options.iou_thr,))
        chart = draw_precision_recall(metrics, class_names, title=images.name)
        print(f"Wrote {viz.save_image(options.out / 'precision_recall.png', chart)}")


def show_curves(options: argparse.Namespace) -> None:
    runs = {}
    for workdir in options.workdirs:
        path = workdir / "metrics.jsonl" if workdir.is_dir() else workdir
        if not path.is_file():
            raise DataError(f"{path} does not exist; give the --workdir of a scripts/train.py run.")
        runs[str(workdir)] = viz.metric_series(read_jsonl(path))
    chart = viz.plot_training(runs, names=options.names, smoothing=options.smoothing)
    print(f"Wrote {viz.save_image(options.out, chart)}")


def show_instances(options: argparse.Namespace) -> None:
    counts, class_names = {}, None
    for data in options.data:
        truth = Voc(root=data).ground_truth(options.split)
        if class_names not in (None, truth.class_names):
            raise DataError(
                f"{data} has the classes {truth.class_names}, but {options.data[0]} has {class_names}; "
                "draw them in two charts."
            )
        class_names = truth.class_names
        table = TruthTable.from_annotations(truth.boxes.values(), num_classes=len(class_names))
        counts[f"{data.name} {options.split}"] = table.counts()
    title = next(iter(counts)) if len(counts) == 1 else ""
    chart = viz.plot_instances(counts, class_names, title=title)
    print(f"Wrote {viz.save_image(options.out, chart)}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        options.run(options)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
