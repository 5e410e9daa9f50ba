"""The images to look at, which of them, of which class, and the files that are written of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.data.readers.folder import list_images
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.runs.annotated_images import AnnotatedImages


def read_images(data: Path, split: str | None) -> AnnotatedImages:
    """Return the images and, in VOC layout, their annotated objects."""
    if not (data / "ImageSets").is_dir():
        if split:
            raise DataError(f"--split needs VOC layout, but {data} has no ImageSets folder.")
        return AnnotatedImages(list_images(data))
    if not split:
        found = sorted(path.stem for path in (data / "ImageSets" / "Main").glob("*.txt"))
        raise DataError(f"{data} is in VOC layout: choose --split out of {', '.join(found[:20])}.")
    return AnnotatedImages.read(Voc(root=data), split)


def choose(images: ImageSet, options: argparse.Namespace) -> list[int]:
    """Return the positions of the images to draw."""
    if not options.images:
        return spread(images, options.num)
    position = {image_id: index for index, image_id in enumerate(images.image_ids)}
    unknown = [image_id for image_id in options.images if image_id not in position]
    if unknown:
        raise DataError(
            f"{images.name} has no image {unknown[0]!r}; ids look like {images.image_ids[:3]}."
        )
    return [position[image_id] for image_id in options.images]


def spread(images: ImageSet, num: int) -> list[int]:
    """Return the positions of `num` images (at least 1), evenly spread over the set."""
    count = min(max(num, 1), len(images))
    return np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()


def write_figures(
    images: ImageSet,
    options: argparse.Namespace,
    draw: Callable[[np.ndarray, int, ImageRecord], np.ndarray | None],
    *,
    rows: bool = False,
) -> None:
    """Draw the chosen images, one file each, and all of them on a sheet; `rows` puts each on a row of its own."""
    figures, captions = [], []
    for index in choose(images, options):
        record = images.records[index]
        try:
            image = record.load()
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        figure = draw(image, index, record)
        if figure is None:
            print(f"left out: nothing to draw in {record.image_id}", file=sys.stderr)
            continue
        viz.save_image(options.out / f"{record.image_id.replace('/', '_')}.png", figure)
        figures.append(figure)
        captions.append(record.image_id)
    layout = {"columns": 1, "cell_px": None} if rows else {}
    sheet = viz.save_image(
        options.out / "sheet.png", viz.contact_sheet(figures, captions=captions, **layout)
    )
    print(f"Wrote {len(figures)} figures and {sheet}")


def class_to_show(class_names: Sequence[str], name: str | None) -> int | None:
    """Return the index of the class named; `None` if none is."""
    if name is None:
        return None
    if name not in class_names:
        raise DataError(f"there is no class {name!r}; the classes are {', '.join(class_names)}.")
    return class_names.index(name)
