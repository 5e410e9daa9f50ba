"""Points and class scores of images as tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from wsod_jax.files import atomic_write
from wsod_jax.types import ImageResult


class NamedImages(Protocol):
    """The image set that results are of."""

    image_ids: Sequence[str]
    class_names: Sequence[str]


def write_points(path: Path, results: Iterable[ImageResult], images: NamedImages) -> Path:
    """Write the points of all classes read: image, class, x, y, the class's score, whether it is predicted."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", "x", "y", "score", "predicted"])
        for result in results:
            for c in result.maps.classes:
                x, y = result.maps.point(int(c))
                told = [images.image_ids[result.image_index], images.class_names[c]]
                score, predicted = result.image_scores[c], int(result.maps.predicted[c])
                writer.writerow([*told, f"{x:.1f}", f"{y:.1f}", f"{score:.6f}", predicted])
    return path


def write_image_scores(
    path: Path, results: Iterable[ImageResult], images: NamedImages, class_names: Sequence[str]
) -> Path:
    """Write a row for each image and a column for each class."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["image", *class_names])
        for result in results:
            image_id = images.image_ids[result.image_index]
            writer.writerow([image_id, *(f"{score:.6f}" for score in result.image_scores)])
    return path
