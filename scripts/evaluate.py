"""Measure a trained detector: average precision on the test split, CorLoc on the training split.

    python scripts/evaluate.py --workdir runs/oim_ir                 # its newest checkpoint
    python scripts/evaluate.py --workdir runs/oim_ir --all_steps     # every checkpoint, with curves
    python scripts/evaluate.py --workdir runs/oim_ir --watch         # each new one as training writes it
    python scripts/evaluate.py --checkpoint runs/oim_ir/checkpoints/90000
    python scripts/evaluate.py --workdir runs/oim_ir --predictions results.json   # scores a file, runs no model

Writes report.md, report.json, predictions.json and pictures into <workdir>/evaluation/<step>/.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from wsod_jax import build
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.classification import classification_ap
from wsod_jax.evals.localization import BoxQuality, CorLocMetrics, box_quality
from wsod_jax.evals.pictures import draw_image_detections, draw_precision_recall
from wsod_jax.evals.predictions import read_predictions, write_predictions
from wsod_jax.evals.report import Picture, write_report
from wsod_jax.evals.selection import Results
from wsod_jax.evals.tables import DetectionTable, TruthTable
from wsod_jax.evals.voc import DetectionMetrics
from wsod_jax.experiment import (
    Predictor,
    change_settings,
    check_classes,
    open_checkpoint,
    truth_table,
)
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.viz import contact_sheet, plot_training, save_image


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        run(args)
    except (ConfigError, DataError) as error:
        sys.exit(f"error: {error}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of a training run")
    source.add_argument("--checkpoint", help="folder of one checkpoint")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--all_steps", action="store_true", help="every checkpoint of the workdir")
    steps.add_argument(
        "--watch", action="store_true", help="wait for new checkpoints until training ends"
    )
    parser.add_argument(
        "--split", help="measure mAP on this split (default: config.data.test_split)"
    )
    parser.add_argument(
        "--corloc_split", help="measure CorLoc on this split, 'none' for not at all"
    )
    parser.add_argument(
        "--predictions", help="score this COCO results file instead of running the model"
    )
    parser.add_argument("--out", help="folder of the report (default: <workdir>/evaluation)")
    parser.add_argument("--pictures", type=int, default=12, help="images to draw (default 12)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a test setting, e.g. --set nms_thr=0.4 (repeatable)",
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    source = Path(args.workdir or args.checkpoint)
    out = Path(args.out) if args.out else default_folder(source)
    history, predictor = {}, None
    for step in steps_of(source, args):
        opened, config, metadata = open_checkpoint(source, None if source.name.isdigit() else step)
        if predictor is None:
            settings = change_settings(opened.settings, args.set)
            predictor = dataclasses.replace(opened, settings=settings)
        else:  # compiled once for all checkpoints
            predictor = predictor.with_weights(opened.params, opened.extras)
        history[step] = evaluate_step(predictor, config, metadata, args, out / str(step))
    if len(history) > 1:
        series = {
            name: (
                np.array(list(history)),
                np.array([s.get(name, np.nan) for s in history.values()]),
            )
            for name in next(iter(history.values()))
        }
        path = save_image(out / "curves.png", plot_training({source.name: series}))
        (out / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        print(f"curves over {len(history)} checkpoints: {path}")


def default_folder(source: Path) -> Path:
    """Return <workdir>/evaluation for a workdir and for a checkpoint inside one."""
    return (source.parent.parent if source.name.isdigit() else source) / "evaluation"


def steps_of(source: Path, args: argparse.Namespace):
    """Yield the steps to evaluate; with --watch, as they appear, until the run's last one."""
    if args.checkpoint and source.name.isdigit():
        yield int(source.name)
        return
    seen = set()
    while True:
        found = [step for step in checkpoint_steps(source) if step not in seen]
        if not found and not args.watch:
            raise DataError(
                f"no checkpoints in {source}; train with scripts/train.py --workdir {source}"
            )
        if not args.all_steps and not args.watch:
            found = found[-1:]
        for step in found:
            seen.add(step)
            yield step
        if not args.watch or (seen and max(seen) >= last_step(source)):
            return
        time.sleep(10)


def last_step(source: Path) -> int:
    """Return the step at which the run will end."""
    return build.load_config(source / "config.json").train.num_steps


def evaluate_step(
    predictor: Predictor, config: ConfigDict, metadata: dict, args: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Evaluate one checkpoint, write its report, and return the report's summary."""
    step, settings = metadata["step"], predictor.settings
    images = build.images(config, args.split or config.data.test_split)
    check_classes(images, predictor.class_names)
    print(f"step {step}: {len(images)} images of {images.name}, {settings.num_views} views each")
    parts, pictures, notes, scalars = {}, [], [], {}
    if args.predictions:
        detections = read_predictions(
            args.predictions, image_ids=images.image_ids, class_names=images.class_names
        )
    else:
        proposals = build.proposals(config)
        started = time.perf_counter()
        results = predictor.detect(images, proposals, "map", bar)
        scalars["seconds_per_image"] = (time.perf_counter() - started) / max(len(images), 1)
        detections = results.detections if proposals is not None else None
        if results.image_scores is not None:
            parts["classification"] = classification_ap(
                results.image_scores, images.labels, ap_mode=settings.ap
            )
        split = corloc_split(args, settings) if build.has_boxes(config) else None
        if split is not None and detections is not None:
            parts["corloc"], quality = measure_corloc(predictor, config, split, proposals)
            scalars["top box size ratio"] = quality.size_ratio
        notes.append(compilation_note(predictor, split))
    if detections is not None and build.has_boxes(config):
        truth = truth_table(
            images, build.ground_truth(config, args.split or config.data.test_split)
        )
        parts["detection"] = predictor.score(detections, truth)
        pictures = draw(images, detections, truth, parts["detection"], folder, args.pictures)
    if detections is not None and not args.predictions:
        path = write_predictions(
            folder / "predictions.json",
            detections,
            image_ids=images.image_ids,
            class_names=images.class_names,
        )
        print(f"predictions: {path}")
    report = write_report(
        folder,
        title=f"{metadata['method']}, step {step}, {images.name}",
        class_names=images.class_names,
        settings={
            "set": images.name,
            "corloc_split": corloc_split(args, settings),
            "step": step,
            "seed": metadata["seed"],
            "method": config.method.to_dict(),
            "test": dataclasses.asdict(settings),
            "predictions": args.predictions,
        },
        scalars=scalars,
        pictures=pictures,
        notes=notes,
        **parts,
    )
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    summary = {name: value for name, value in content["summary"].items() if value is not None}
    print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))
    print(f"report: {report}")
    return summary


def corloc_split(args: argparse.Namespace, settings: build.EvalSettings) -> str | None:
    """Return the split to measure CorLoc on, `None` for none."""
    split = args.corloc_split or settings.corloc_split
    return None if split == "none" else split


def measure_corloc(
    predictor: Predictor, config: ConfigDict, split: str, proposals: ProposalSet
) -> tuple[CorLocMetrics, BoxQuality]:
    """Measure the top boxes of every image's own classes."""
    images = build.images(config, split)
    results = predictor.detect(images, proposals, "corloc", bar)
    truth = truth_table(images, build.ground_truth(config, split))
    return predictor.localise(results, truth), box_quality(top_boxes(results, images), truth)


def top_boxes(results: Results, images: ImageSet) -> DetectionTable:
    """Return the best box of every class that an image is labelled with."""
    rows, classes = np.nonzero((images.labels == 1) & results.top_valid)
    return DetectionTable(
        rows,
        classes,
        results.top_scores[rows, classes],
        results.top_boxes[rows, classes],
        len(images),
        len(images.class_names),
    )


def compilation_note(predictor: Predictor, split: str | None) -> str:
    """Say how often the predict step was compiled, and how often it may be."""
    settings = predictor.settings
    shapes = set(settings.canvases("map").shapes())
    if split is not None:
        shapes |= set(settings.canvases("corloc").shapes())
    note = (
        f"compilations of the predict step: {predictor.num_compilations()}, at most {len(shapes)} "
        "(one per canvas and orientation)"
    )
    print(note)
    return note


def draw(
    images: ImageSet,
    detections: DetectionTable,
    truth: TruthTable,
    metrics: DetectionMetrics,
    folder: Path,
    count: int,
) -> list[Picture]:
    """Draw precision-recall curves and the first images' hits, misses and ground truth."""
    curves = save_image(
        folder / "precision_recall.png", draw_precision_recall(metrics, images.class_names)
    )
    pictures = [Picture(curves, "Precision and recall of every class")]
    drawn, names = [], []
    for index in range(min(count, len(images))):
        record = images.records[index]
        # Scores of different methods have different ranges: show the best box of each class present.
        own = detections.of_image(index)
        shown = float(np.sort(own.scores)[::-1][: 2 * count][-1]) if len(own) else 0.0
        threshold = max(shown, 0.3 * float(own.scores.max())) if len(own) else 0.0
        drawn.append(
            draw_image_detections(
                record.load(),
                index,
                detections,
                truth,
                class_names=images.class_names,
                score_thr=threshold,
                max_boxes=6,
            )
        )
        names.append(record.image_id)
        save_image(folder / "detections" / f"{record.image_id}.png", drawn[-1])
    if drawn:
        sheet = save_image(folder / "detections.png", contact_sheet(drawn, captions=names))
        pictures.append(Picture(sheet, "Hits red, false detections yellow, ground truth green"))
    print(f"pictures: {folder / 'detections.png'}")
    return pictures


def bar(batches):
    """Show progress over batches on a terminal."""
    return tqdm(batches, total=len(batches), unit="batch", disable=None)


if __name__ == "__main__":
    main()
