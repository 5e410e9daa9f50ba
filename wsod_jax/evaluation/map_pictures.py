"""Pictures of what maps say: a row per image of the proposal map, the response maps, points and boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.errors import DataError
from wsod_jax.evaluation.maps import Located, MapReading
from wsod_jax.evaluation.metrics.tables import TruthTable
from wsod_jax.evaluation.report import Picture
from wsod_jax.evaluation.response import response_point

CLASSES_SHOWN = 3


def draw_located(
    image: np.ndarray,
    index: int,
    located: Located,
    reading: MapReading,
    truth: TruthTable | None,
    *,
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw one image's proposal map and the response maps of its best-scored examined classes, side by side.

    An image with no examined class shows the response to the class scored highest, marked as not predicted.

    Args:
      image: [H, W, 3] uint8 RGB, the original image.
      index: its position in the set; it must have been predicted.
      located: of the whole set.
      reading: how the maps are read.
      truth: of the whole set, drawn over the image; `None` where there is none.
      class_names: c names.
    Returns:
      [H', W', 3] uint8 RGB: the image, its proposal map, then up to three classes.
    """
    size, maps = image.shape[:2], located.maps[index]
    first = image
    if truth is not None:
        objects = truth.of_image(index)
        first = viz.draw_boxes(
            image, objects.boxes, classes=objects.classes, class_names=class_names
        )
    objectness = reading.objectness(maps, size)
    cells = [first, viz.draw_objectness(image, objectness - objectness.min())]
    captions = ["image", "proposal map"]
    scores = located.image_scores[index]
    examined = np.flatnonzero(located.examined[index])
    chosen = examined if len(examined) else np.array([np.argmax(scores)])
    for c in sorted(chosen, key=lambda c: -scores[c])[:CLASSES_SHOWN]:
        response = reading.response(maps, size, [c])[..., 0]
        cells.append(draw_response(image, response, reading))
        claim = "" if located.claimed[index, c] else ", not predicted"
        captions.append(f"{class_names[c]} {scores[c]:.2f}{claim}")
    return viz.contact_sheet(cells, captions=captions, columns=2 + CLASSES_SHOWN)


def draw_response(image: np.ndarray, response: np.ndarray, reading: MapReading) -> np.ndarray:
    """Draw one class's response [H, W] over its image, with its point, tightest box, and components."""
    above = np.maximum(response - response.min(), 0.0)
    tight, _ = reading.boxes(response, "tightest")
    parts, _ = reading.boxes(response, "components")
    return viz.draw_response(image, above, response_point(response), tight[0], parts)


def picture_maps(
    folder: str | Path,
    images: Sequence[Callable[[], np.ndarray]],
    located: Located,
    reading: MapReading,
    truth: TruthTable | None,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
) -> list[Picture]:
    """Draw the first images' maps into a folder, one file each and all of them on a sheet.

    Args:
      folder: gets maps.png and maps/<image id>.png.
      images: functions that load the first images of the set; those that raise DataError are left out.
      located: of the whole set.
      reading: how the maps are read.
      truth: of the whole set; `None` where there is none.
      image_ids: of `images`.
      class_names: c names.
    Returns:
      The pictures that a report shows.
    """
    folder, rows = Path(folder), []
    for index, (load, image_id) in enumerate(zip(images, image_ids, strict=True)):
        try:
            image = load()
        except DataError:
            continue
        if not located.predicted[index]:
            continue
        rows.append(draw_located(image, index, located, reading, truth, class_names=class_names))
        viz.save_image(folder / "maps" / f"{image_id.replace('/', '_')}.png", rows[-1])
    if not rows:
        return []
    sheet = viz.contact_sheet(rows, columns=1, cell_px=None)
    path = viz.save_image(folder / "maps.png", sheet)
    print(f"pictures: {path}")
    caption = (
        "Proposal map; responses with their strongest point, tightest box, and components (dashed)"
    )
    return [Picture(path, caption)]
