"""Look at proposals, detections, training curves and data sets, and at what a detector learnt from.

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
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import build, viz
from wsod_jax.data.folder import list_images
from wsod_jax.data.proposals import ProposalSet, check_proposals
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.data.voc import read_ground_truth, read_image_set
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.pictures import draw_image_detections, draw_precision_recall
from wsod_jax.evals.predictions import read_index, read_predictions
from wsod_jax.evals.tables import TruthTable
from wsod_jax.evals.voc import evaluate_detections
from wsod_jax.experiment import LOCATIONS, truth_table
from wsod_jax.inspection.mining import MiningRun, draw_class_graphs, draw_mined_stages
from wsod_jax.inspection.quality import pseudo_quality, quality_table
from wsod_jax.inspection.scores import MAX_STEPS, ScoredRun, draw_score_evolution
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.train.logging import read_jsonl


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
    add_run_commands(command)
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


def add_run_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that load a checkpoint."""
    pseudo = command("pseudo", show_pseudo, "pseudo boxes that a run mines, stage by stage")
    pseudo.add_argument("--truth", action="store_true", help="also draw the annotated objects")
    graphs = command("graphs", show_graphs, "OIM's spatial and appearance graphs")
    graphs.add_argument(
        "--num_rejected", type=int, default=4, help="proposals that just failed, dashed (4)"
    )
    for mining in (pseudo, graphs):
        mining.add_argument(
            "--checkpoint",
            type=Path,
            required=True,
            help="folder of a run (its newest checkpoint), or of one checkpoint",
        )
        mining.add_argument("--step", type=int, help="which checkpoint of the run")
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
    objectness.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='change a test setting, e.g. --set "scales=(480,)", or where the data lie now (repeatable)',
    )
    add_choice_arguments(objectness)


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


def read_images(data: Path, split: str | None) -> tuple[ImageSet, TruthTable | None]:
    """Return the images and, in VOC layout, their annotated objects."""
    if not (data / "ImageSets").is_dir():
        if split:
            raise DataError(f"--split needs VOC layout, but {data} has no ImageSets folder.")
        return list_images(data), None
    if not split:
        found = sorted(path.stem for path in (data / "ImageSets" / "Main").glob("*.txt"))
        raise DataError(f"{data} is in VOC layout: choose --split out of {', '.join(found[:20])}.")
    images = read_image_set(data, split)
    truth = read_ground_truth(data, split).select(images.image_ids)
    return images, TruthTable.from_annotations(
        truth.boxes.values(), num_classes=len(images.class_names)
    )


def choose(images: ImageSet, options: argparse.Namespace) -> list[int]:
    """Return the positions of the images to draw."""
    if not options.images:
        count = min(max(options.num, 1), len(images))
        return np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()
    position = {image_id: index for index, image_id in enumerate(images.image_ids)}
    unknown = [image_id for image_id in options.images if image_id not in position]
    if unknown:
        raise DataError(
            f"{images.name} has no image {unknown[0]!r}; ids look like {images.image_ids[:3]}."
        )
    return [position[image_id] for image_id in options.images]


def write_pictures(
    images: ImageSet,
    options: argparse.Namespace,
    draw: Callable[[np.ndarray, int, ImageRecord], np.ndarray | None],
    *,
    rows: bool = False,
) -> None:
    """Draw the chosen images, one file each, and all of them on a sheet; `rows` puts each on a row of its own."""
    pictures, captions = [], []
    for index in choose(images, options):
        record = images.records[index]
        try:
            image = record.load()
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        picture = draw(image, index, record)
        if picture is None:
            print(f"left out: nothing to draw in {record.image_id}", file=sys.stderr)
            continue
        viz.save_image(options.out / f"{record.image_id.replace('/', '_')}.png", picture)
        pictures.append(picture)
        captions.append(record.image_id)
    layout = {"columns": 1, "cell_px": None} if rows else {}
    sheet = viz.save_image(
        options.out / "sheet.png", viz.contact_sheet(pictures, captions=captions, **layout)
    )
    print(f"Wrote {len(pictures)} pictures and {sheet}")


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
        truth = read_ground_truth(data, options.split)
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


def show_pseudo(options: argparse.Namespace) -> None:
    run = MiningRun.open(options.checkpoint, options.step, options.set)
    images = run.data.image_set
    mined = run.mine(choose(images, options))
    truth = None
    if options.truth:
        truth = truth_table(images, build.ground_truth(run.config, run.config.data.train_split))

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray | None:
        if index not in mined:
            return None
        objects = None if truth is None else truth.of_image(index).boxes
        return draw_mined_stages(
            image, mined[index], class_names=images.class_names, truth_boxes=objects
        )

    write_pictures(images, options, draw, rows=True)


def show_quality(options: argparse.Namespace) -> None:
    found = {}
    for workdir in options.workdir:
        steps = options.steps or [step for step in checkpoint_steps(workdir) if step > 0]
        if not steps:
            raise DataError(f"{workdir} has no checkpoint after step 0; train it with train.py.")
        for step in steps:
            run = MiningRun.open(workdir, step, options.set)
            positions = choose(run.data.image_set, options)
            found[str(workdir), step] = pseudo_quality(run, positions)
            print(f"{workdir}, step {step}: {len(positions)} images mined", file=sys.stderr)
    print(quality_table(found))


def show_graphs(options: argparse.Namespace) -> None:
    run = MiningRun.open(options.checkpoint, options.step, options.set)
    images = run.data.image_set
    print(f"step {run.step}, alpha {run.alpha():g}")
    mined = run.mine(choose(images, options))

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray | None:
        if index not in mined:
            return None
        pictures = []
        for label in np.flatnonzero(images.labels[index] == 1):
            graphs = [
                run.class_graph(mined[index], stage, label, num_rejected=options.num_rejected)
                for stage in range(mined[index].num_stages)
            ]
            name = images.class_names[label]
            pictures.append(draw_class_graphs(image, mined[index], graphs, class_name=name))
        return viz.contact_sheet(pictures, columns=1, cell_px=None)

    write_pictures(images, options, draw, rows=True)


def show_objectness(options: argparse.Namespace) -> None:
    runs = [ScoredRun.open(workdir, options.set) for workdir in options.workdir]
    config = runs[0].config
    images = build.images(config, options.split or config.data.train_split)
    named = class_to_show(images.class_names, options.class_name)
    chosen, scored = choose(images, options), []
    for run in runs:
        steps = options.steps or run.steps()
        print(f"{run.workdir}: {len(chosen)} images at steps {steps}", flush=True)
        scored.append(run.score(images, chosen, steps))

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        shown = named
        if shown is None:  # the label that the last run is surest of in the end
            last = list(scored[-1].values())[-1][index]
            shown = int(np.argmax(last.scores.max(axis=0) + (np.array(record.labels) == 1)))
        name = images.class_names[shown]
        rows = []
        for run, steps in zip(runs, scored, strict=True):
            of_run = f"{run.workdir.name}, " if len(runs) > 1 else ""
            found = {f"{of_run}step {step}: {name}": steps[step][index] for step in steps}
            rows.append(
                draw_score_evolution(
                    image, run.predictor, found, class_index=shown, max_boxes=options.max_boxes
                )
            )
        return viz.contact_sheet(rows, columns=1, cell_px=None)

    write_pictures(images, options, draw, rows=True)


def class_to_show(class_names: Sequence[str], name: str | None) -> int | None:
    """Return the index of the class named; `None` if none is."""
    if name is None:
        return None
    if name not in class_names:
        raise DataError(f"there is no class {name!r}; the classes are {', '.join(class_names)}.")
    return class_names.index(name)


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
