"""What `predict` does: detect objects in image files, write and draw the results."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from wsod_jax.analysis.figures import draw_detections, draw_maps
from wsod_jax.analysis.guidance import draw_guidance, guidance_of
from wsod_jax.analysis.opened_run import OpenedRun
from wsod_jax.data.input.loading import num_cores
from wsod_jax.data.proposals.proposal_set import ProposalSet, check_proposals
from wsod_jax.data.proposals.selective_search import SearchOptions, run_selective_search
from wsod_jax.data.readers.folder import list_images
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.formats import (
    write_coco_set,
    write_image_scores,
    write_points,
    write_results,
)
from wsod_jax.files import atomic_write
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.predictor import Predictor, bar, load_run
from wsod_jax.runs.scoring import open_log, run_pass, source_of
from wsod_jax.types import ImageResult
from wsod_jax.viz import contact_sheet, save_image

SHEET_FIGURES = 48
IMAGES_PER_WORKER = 8  # a process takes seconds to start: fewer images are not worth one


def predict(args: argparse.Namespace) -> None:
    """Predict as the arguments say."""
    predictor = load_run(args.workdir, weights=args.weights, changes=args.set)
    # Always the thread loader, so that TensorFlow is not required.
    predictor = predictor.with_settings(loader="threads")
    outputs, names = predictor.method.outputs, predictor.class_names
    if "maps" in outputs:
        refuse_options_of_boxes(args)
    if args.cam is not None and predictor.method.localization_maps is None:
        raise ConfigError(
            f"--cam is drawn next to localization maps, which {predictor.config.method.name!r} has not; leave it out"
        )
    images = read_images(args.images)
    print(
        f"{predictor.config.method.name}, step {predictor.metadata['step']}, {len(names)} classes: "
        f"{len(images)} images, {predictor.settings.num_views} views each"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    proposals = None
    if predictor.config.proposals is not None:
        images, proposals = with_proposals(images, predictor.config.proposals.path, args)
    images = predictor.unlabeled(images)
    log = open_log(predictor, images, proposals, args.out, "predicted")
    run_pass(predictor, AnnotatedImages(images), proposals, log, bar)
    results = predictor.selected(log, len(images))
    write_files(predictor, images, results, args)
    if outputs & {"boxes", "maps"}:
        draw(predictor, images, results, args)
    if predictor.method.localization_maps is not None and args.max_guidance:
        draw_branches(predictor, images, proposals, args)
    log.remove()


def write_files(
    predictor: Predictor, images: ImageSet, results: Iterable[ImageResult], args: argparse.Namespace
) -> None:
    """Write what was predicted."""
    outputs, names = predictor.method.outputs, predictor.class_names
    if "image_scores" in outputs:
        path = write_image_scores(args.out / "image_scores.csv", results, images, names)
        print(f"scores of images: {path}")
    if "maps" in outputs:
        say_of_maps(results, len(images))
    if outputs & {"boxes", "maps"}:
        path = write_results(args.out / "predictions.json", results, images)
        print(f"{sum(len(result.scores) for result in results)} boxes: {path}")
        path = write_coco_set(
            args.out / "detections.coco.json", results, images, source=predictor.config.method.name
        )
        print(f"the same as a COCO data set: {path}")
    if "semantic" in outputs:
        for result in results:
            name = f"{images.records[result.image_index].image_id}.png"
            save_image(args.out / "label_maps" / name, result.semantic)
        print(f"label maps: {args.out / 'label_maps'}")
    if "maps" in outputs:
        print(f"points: {write_points(args.out / 'points.csv', results, images)}")


def say_of_maps(results: Iterable[ImageResult], count: int) -> None:
    """Print how many images are too small for maps, and how many have no predicted class."""
    maps = [result.maps for result in results]
    too_small = sum(one.is_too_small for one in maps)
    if too_small:
        print(
            f"{too_small} images are smaller than one cell of the map: nothing is predicted for them"
        )
    without = sum(not one.predicted.any() for one in maps)
    if without:
        print(f"no class is predicted in {without} of {count} images: they have no boxes")


def refuse_options_of_boxes(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that a method with maps would ignore."""
    for name in ("proposals", "score_thr", "max_boxes"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"--{name} is for methods that choose among proposals; leave it out. --set "
                "maps.threshold=1.0 and its like say how boxes are read off maps"
            )


def read_images(paths: Sequence[Path]) -> ImageSet:
    """Return the images of files and folders that can be read; the others are named and counted."""
    images = list_images(paths)
    with ThreadPoolExecutor(num_cores()) as pool:
        problems = list(pool.map(problem_of, images.records))
    for problem in filter(None, problems):
        print(f"left out: {problem}", file=sys.stderr)
    readable = [i for i, problem in enumerate(problems) if problem is None]
    num_bad = len(images.missing) + len(images) - len(readable)
    if num_bad:
        print(f"{num_bad} images could not be read and are left out", file=sys.stderr)
    if not readable:
        raise DataError(f"none of the {num_bad} images can be read; nothing to predict")
    return images.select(readable)


def problem_of(record: ImageRecord) -> str | None:
    """Return why an image cannot be decoded, `None` if it can."""
    try:
        record.load()
    except DataError as error:
        return str(error)
    return None


def with_proposals(
    images: ImageSet, trained_on: str, args: argparse.Namespace
) -> tuple[ImageSet, ProposalSet]:
    """Return the images to predict and their proposals, read or computed as those that the detector trained on."""
    if args.proposals is not None:
        proposals = ProposalSet.load(args.proposals)
        check_proposals(proposals, images)
        return images, proposals
    options, problem = SearchOptions.like(trained_on)
    print(f"proposals: {options.generator}, {problem or 'as for the training set'}")
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


def check_sources(path: Path, images: ImageSet) -> None:
    """Raise `DataError` if the proposals of an earlier call are of other images with the same names."""
    sources = {record.image_id: source_of(record) for record in images.records}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for image_id, source in sources.items():
        if known.get(image_id, source) != source:
            raise DataError(
                f"{path.parent} holds the proposals of another image {image_id!r} ({known[image_id][0]}, "
                f"now {source[0]}, or it was changed); choose another --out or delete that one"
            )
    with atomic_write(path) as file:
        file.write(json.dumps(known | sources, indent=1) + "\n")


def draw(
    predictor: Predictor, images: ImageSet, results: Iterable[ImageResult], args: argparse.Namespace
) -> None:
    """Draw every image with what was found in it, and a sheet of them."""
    has_maps, names = "maps" in predictor.method.outputs, predictor.class_names
    columns, cell_px = (1, 900) if has_maps else (4, 320)
    cells, captions = [], []
    for result in results:
        if result.image_index >= args.max_figures:
            break
        record = images.records[result.image_index]
        image = record.load()
        if has_maps:
            figure = draw_maps(image, result, None, class_names=names)
        else:
            threshold = args.score_thr
            if threshold is None:
                threshold = 0.5 * float(result.scores.max(initial=0.0))
            most = 20 if args.max_boxes is None else args.max_boxes
            figure = draw_detections(
                image, result, None, class_names=names, score_thr=threshold, max_boxes=most
            )
        save_image(args.out / "figures" / f"{record.image_id}.jpg", figure)
        if len(cells) < SHEET_FIGURES:  # shrunk: sheets are many
            cells.append(contact_sheet([figure], columns=1, gap_px=0, cell_px=cell_px))
            captions.append(record.image_id)
    if cells:
        cell_px = None if has_maps else cell_px
        sheet = contact_sheet(cells, captions=captions, columns=columns, cell_px=cell_px)
        path = save_image(args.out / "sheet.jpg", sheet)
        print(f"figures: {args.out / 'figures'} and {path}")


def draw_branches(
    predictor: Predictor, images: ImageSet, proposals: ProposalSet | None, args: argparse.Namespace
) -> None:
    """Draw what the branches of WS-JDS see of every image, next to the activations of another run if one is given."""
    images = images.select(range(min(len(images), args.max_guidance)))
    cams = {}
    if args.cam is not None:
        run = OpenedRun.open(args.cam, "maps")
        cams = run.maps(images, range(len(images)), [run.step])[run.step]
    names, seed_thrs = predictor.class_names, predictor.method.seed_thrs
    for found in guidance_of(predictor, images, proposals):
        record = images.records[found.image_index]
        figure = draw_guidance(record.load(), found, names, seed_thrs, cams.get(found.image_index))
        save_image(args.out / "guidance" / f"{record.image_id}.jpg", figure)
    print(f"localization maps, seeds and segmentation: {args.out / 'guidance'}")


def bar_style() -> dict:
    """Return how often a progress bar is drawn: often on a terminal, rarely in a log."""
    return {"mininterval": 0.1 if sys.stderr.isatty() else 20.0, "delay": 0.5}
