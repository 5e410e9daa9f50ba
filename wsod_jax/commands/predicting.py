"""What `predict` does: detect in image files, and write and draw what was found."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsod_jax.data.folder import list_images
from wsod_jax.data.loading import num_cores
from wsod_jax.data.proposals import ProposalSet, check_proposals
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.data.selective_search import SearchOptions, run_selective_search
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.map_pictures import draw_located
from wsod_jax.evaluation.pictures import draw_image_detections
from wsod_jax.evaluation.predictions import write_predictions
from wsod_jax.files import atomic_write
from wsod_jax.measuring.maps import predicted_boxes, write_points
from wsod_jax.predictor import Predictor
from wsod_jax.runs import load_run
from wsod_jax.viz import contact_sheet, save_image

SHEET_PICTURES = 48
IMAGES_PER_WORKER = 8  # a process takes seconds to start: fewer pictures are not worth one


def predict(args: argparse.Namespace) -> None:
    """Predict as the arguments say."""
    predictor = load_run(args.checkpoint, weights=args.weights, changes=args.set)
    # Threads, whatever the run was tested with: this script does without TensorFlow.
    settings = dataclasses.replace(predictor.settings, loader="threads")
    predictor = dataclasses.replace(predictor, settings=settings)
    images = read_images(args.images)
    print(
        f"{predictor.config.method.name}, step {predictor.metadata['step']}, {len(predictor.class_names)} classes: "
        f"{len(images)} images, {settings.num_views} views each"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    if "maps" in predictor.method.outputs:
        locate(predictor, images, args)
        return
    proposals = None
    if predictor.config.proposals is not None:
        images, proposals = with_proposals(images, predictor.config.proposals.path, args)
    results = predictor.detect(images, proposals, "map", bar)
    if results.image_scores is not None:
        path = args.out / "image_scores.csv"
        write_image_scores(path, images, predictor.class_names, results.image_scores)
        print(f"scores of images: {path}")
    if "boxes" not in predictor.method.outputs:
        return
    path = write_predictions(
        args.out / "predictions.json",
        results.detections,
        image_ids=images.image_ids,
        class_names=predictor.class_names,
    )
    print(f"{len(results.detections)} boxes: {path}")

    def panel(image: np.ndarray, index: int) -> np.ndarray:
        threshold = args.score_thr
        if threshold is None:
            best = results.detections.of_image(index).scores.max(initial=0.0)
            threshold = 0.5 * float(best)
        return draw_image_detections(
            image,
            results.detections.of_image(index),
            None,
            class_names=predictor.class_names,
            score_thr=threshold,
            max_boxes=20 if args.max_boxes is None else args.max_boxes,
        )

    draw(images, panel, args)


def locate(predictor: Predictor, images: ImageSet, args: argparse.Namespace) -> None:
    """Predict with a method that localises without proposals."""
    for name in ("proposals", "score_thr", "max_boxes"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"--{name} is for methods that choose among proposals; leave it out. --set "
                "maps.threshold=1.0 and its like say how boxes are read off maps"
            )
    located = predictor.locate(images, progress=bar, keep_responses=args.max_pictures)
    path = args.out / "image_scores.csv"
    write_image_scores(path, images, predictor.class_names, located.image_scores)
    print(f"scores of images: {path}")
    too_small = int(located.too_small.sum())
    if too_small:
        print(
            f"{too_small} images are smaller than one cell of the map: nothing can be told of them"
        )
    without = int((located.predicted & ~located.claimed.any(axis=1)).sum())
    if without:
        print(f"no class is predicted in {without} of {len(images)} images: they have no boxes")
    boxes = predicted_boxes([located], predictor)
    path = write_predictions(
        args.out / "predictions.json",
        boxes,
        image_ids=images.image_ids,
        class_names=predictor.class_names,
    )
    print(f"{len(boxes)} boxes: {path}")
    path = write_points(args.out / "points.csv", images, located, predictor.class_names)
    print(f"points: {path}")

    def panel(image: np.ndarray, index: int) -> np.ndarray:
        return draw_located(
            image,
            index,
            located,
            predictor.settings.maps.reading,
            None,
            class_names=predictor.class_names,
        )

    draw(images, panel, args, columns=1)


def read_images(paths: Sequence[Path]) -> ImageSet:
    """Return the pictures of files and folders that can be read; the others are named and counted."""
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if not path.is_dir()]
    sets = [list_images(folder) for folder in folders] + ([list_images(files)] if files else [])
    records = [record for images in sets for record in images.records]
    counts = sum((Counter(images.counts) for images in sets), Counter())
    with ThreadPoolExecutor(num_cores()) as pool:
        problems = list(pool.map(problem_of, records))
    for problem in filter(None, problems):
        print(f"left out: {problem}", file=sys.stderr)
    readable = [r for r, problem in zip(records, problems, strict=True) if problem is None]
    num_bad = counts["bad_image"] + len(records) - len(readable)
    if num_bad:
        print(f"{num_bad} images could not be read and are left out", file=sys.stderr)
    if not readable:
        raise DataError(f"none of the {num_bad} images can be read; nothing to predict")
    return ImageSet("images", (), tuple(readable), {"bad_image": num_bad})


def problem_of(record: ImageRecord) -> str | None:
    """Return why a picture cannot be decoded, `None` if it can."""
    try:
        record.load()
    except DataError as error:
        return str(error)
    return None


def with_proposals(
    images: ImageSet, trained_on: str, args: argparse.Namespace
) -> tuple[ImageSet, ProposalSet]:
    """Return the pictures to predict and their proposals, read or computed as those that the detector trained on."""
    if args.proposals is not None:
        proposals = ProposalSet.load(args.proposals)
        check_proposals(proposals, images)
        return images, proposals
    options, reason = search_options(trained_on)
    print(f"proposals: {options.generator}, {reason}")
    check_sources(args.out / "proposals.sources.json", images)
    with tqdm(total=len(images), unit="image", **bar_style()) as progress:
        result = run_selective_search(
            images,
            args.out / "proposals.npz",
            options=options,
            workers=max(1, min(os.cpu_count() or 1, len(images) // IMAGES_PER_WORKER)),
            report=lambda done, total: progress.update(done - progress.n),
        )
    for image_id, problem in result.failures:
        print(f"left out {image_id}: {problem}", file=sys.stderr)
    failed = {image_id for image_id, _ in result.failures}
    found = [i for i, record in enumerate(images.records) if record.image_id not in failed]
    return images.select(found), result.proposals


def search_options(path: str) -> tuple[SearchOptions, str]:
    """Return how the training set's proposals were made, or the fast default; and which of the two it is."""
    generator = ProposalSet.read_generator(path)
    if generator is None:
        return SearchOptions(), f"the default, since {path} is not here to tell how it was made"
    options = SearchOptions.of_generator(generator)
    if options is None:
        return (
            SearchOptions(),
            f"though the training set's are {generator!r}; such proposals given with --proposals "
            "would fit the detector better",
        )
    return options, "as for the training set"


def check_sources(path: Path, images: ImageSet) -> None:
    """Make sure that proposals kept from an earlier call are not those of other pictures of the same names."""
    sources = {}
    for record in images.records:
        status = record.path.stat()
        sources[record.image_id] = [str(record.path.resolve()), status.st_size, status.st_mtime_ns]
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for image_id, source in sources.items():
        if known.get(image_id, source) != source:
            raise DataError(
                f"{path.parent} holds the proposals of another image {image_id!r} ({known[image_id][0]}, "
                f"now {source[0]}, or it was changed); choose another --out or delete that one"
            )
    with atomic_write(path) as file:
        file.write(json.dumps(known | sources, indent=1) + "\n")


def write_image_scores(
    path: Path, images: ImageSet, class_names: Sequence[str], scores: np.ndarray
) -> None:
    """Write a table with one row per picture and one column per class."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *class_names])
        for image_id, row in zip(images.image_ids, scores, strict=True):
            writer.writerow([image_id, *(f"{score:.6f}" for score in row)])


def draw(
    images: ImageSet,
    panel: Callable[[np.ndarray, int], np.ndarray],
    args: argparse.Namespace,
    *,
    columns: int = 4,
) -> None:
    """Draw every picture with what was found in it, and a sheet of them."""
    pictures, names = [], []
    for index, record in enumerate(
        tqdm(images.records[: args.max_pictures], unit="picture", **bar_style())
    ):
        picture = panel(record.load(), index)
        save_image(args.out / "pictures" / f"{record.image_id}.jpg", picture)
        if len(pictures) < SHEET_PICTURES:
            cell_px = 320 if columns > 1 else 900
            pictures.append(  # shrunk: sheets are many
                contact_sheet([picture], columns=1, gap_px=0, cell_px=cell_px)
            )
            names.append(record.image_id)
    if pictures:
        cell_px = None if columns == 1 else 320
        sheet = contact_sheet(pictures, captions=names, columns=columns, cell_px=cell_px)
        path = save_image(args.out / "sheet.jpg", sheet)
        print(f"pictures: {args.out / 'pictures'} and {path}")


def bar(batches):
    """Show progress over batches."""
    return tqdm(batches, total=len(batches), unit="batch", **bar_style())


def bar_style() -> dict:
    """Return how often a bar is drawn: at once on a terminal, now and then in a log."""
    return {"mininterval": 0.1 if sys.stderr.isatty() else 20.0, "delay": 0.5}
