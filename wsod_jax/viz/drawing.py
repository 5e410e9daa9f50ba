"""Figures of boxes over one image: detections, proposals, pseudo labels, mining graphs; and sheets of figures.

Every `image` is [H, W, 3] uint8 RGB, and so is every figure that is returned; small ones are enlarged, see `Canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from wsod_jax.types import Mask, PseudoBoxes, RefineTargets
from wsod_jax.viz.canvas import (
    CORE,
    FALSE,
    HIT,
    INK,
    NEUTRAL,
    NODE,
    PAPER,
    TRUTH,
    Canvas,
    Style,
    class_color,
)
from wsod_jax.viz.fonts import font, shown_names, writable


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    classes: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    style: Style = "solid",
) -> np.ndarray:
    """Draw boxes with their class and score, one color per class.

    Args:
      boxes: [n, 4] `xyxy` pixels.
      classes: [n] int; one color for all if not given.
      scores: [n]; the highest is drawn last, on top.
      class_names: names by class; numbers are shown if not given.
      style: of the lines.
    """
    canvas = Canvas(image)
    boxes = np.reshape(boxes, (-1, 4))
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for row in order:
        index = 0 if classes is None else int(classes[row])
        label = _label(
            None if classes is None else index, None if scores is None else scores[row], class_names
        )
        canvas.boxes(boxes[row], class_color(index), labels=[label], style=style)
    return canvas.array()


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    matched: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    truth_boxes: np.ndarray | None = None,
    truth_classes: np.ndarray | None = None,
    missed: np.ndarray | None = None,
) -> np.ndarray:
    """Draw detections and objects: true positives solid red, false positives dashed yellow, objects green brackets.

    Args:
      boxes, scores, classes: [n, 4], [n], [n] detections.
      matched: [n] 1 hit, 0 false, -1 on a difficult object, drawn gray.
      class_names: names by class.
      truth_boxes, truth_classes: [g, 4], [g] objects.
      missed: [g] bool; missed objects are labeled as such, found ones carry no text.

    Source: the colors of Lin et al. 2020 (OIM), figure 4.
    """
    canvas = Canvas(image)
    boxes, matched = np.reshape(boxes, (-1, 4)), np.asarray(matched)
    for row in np.argsort(scores, kind="stable"):
        color, style = {1: (HIT, "solid"), 0: (FALSE, "dashed")}.get(
            int(matched[row]), (NEUTRAL, "dashed")
        )
        label = _label(int(classes[row]), scores[row], class_names)
        canvas.boxes(boxes[row], color, labels=[label], style=style)
    for row, box in enumerate(np.reshape(() if truth_boxes is None else truth_boxes, (-1, 4))):
        label = ""
        if missed is not None and missed[row]:
            label = "missed"
            if truth_classes is not None:
                label += " " + _label(int(truth_classes[row]), None, class_names)
        canvas.boxes(box, TRUTH, labels=[label], style="corners")
    return canvas.array()


def draw_masks(image: np.ndarray, masks: Sequence[Mask], classes: np.ndarray) -> np.ndarray:
    """Blend the masks of objects into an image, a color for each class, and outline them.

    Args:
      masks: n windows of the image; the first one is drawn last, on top.
      classes: [n] int.
    """
    drawn = image.copy()
    for mask, c in list(zip(masks, classes, strict=True))[::-1]:
        height, width = mask.pixels.shape
        window = drawn[mask.top : mask.top + height, mask.left : mask.left + width]
        color = np.array(class_color(int(c)))
        window[mask.pixels] = (window[mask.pixels] + color) // 2
        contours, _ = cv2.findContours(
            mask.pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        for x, y in np.concatenate([np.zeros((0, 1, 2), int), *contours])[:, 0]:
            window[y, x] = color
    return drawn


def draw_label_map(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Blend a label map [H, W] (0 background, class + 1) into an image, a color for each class."""
    colors = np.array([(0, 0, 0), *(class_color(c) for c in range(int(labels.max(initial=0))))])
    blended = (image.astype(int) + colors[labels]) // 2
    return np.where((labels > 0)[..., None], blended, image).astype(np.uint8)


def _label(index: int | None, score: float | None, class_names: Sequence[str] | None) -> str:
    """Return like "cat 0.93", whatever of it is known."""
    name = "" if index is None else str(index)
    if class_names is not None and index is not None:
        name = shown_names(class_names)[index]
    return f"{name} {'' if score is None else f'{score:.2f}'}".strip()


def draw_proposals(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    truth_boxes: np.ndarray | None = None,
    best_index: np.ndarray | None = None,
    best_iou: np.ndarray | None = None,
) -> np.ndarray:
    """Draw all proposals as a density of outlines, and over it the best one of each object.

    Args:
      boxes: [r, 4] `xyxy` pixels, any number.
      truth_boxes: [g, 4] objects, green brackets.
      best_index: [g] the proposal that overlaps each object most, drawn red; -1 for none.
      best_iou: [g] its IoU, written next to it.
    Returns:
      The figure; the more outlines pass through a pixel, the bluer and denser it is.
    """
    boxes = np.reshape(boxes, (-1, 4))
    density = np.zeros(image.shape[:2], np.float32)
    height, width = density.shape
    for x1, y1, x2, y2 in np.round(np.clip(boxes, 0, [width, height, width, height])).astype(int):
        right, bottom = min(x2, width - 1), min(y2, height - 1)
        density[y1 : bottom + 1, [min(x1, width - 1), right]] += 1
        density[[min(y1, height - 1), bottom], x1 : right + 1] += 1
    alpha = np.minimum(0.85, np.log1p(density) / np.log1p(max(8.0, float(density.max(initial=0)))))
    canvas = Canvas(image)
    canvas.blend(np.broadcast_to(np.float32(CORE), (*density.shape, 3)), alpha)
    for row, box in enumerate(np.reshape(() if truth_boxes is None else truth_boxes, (-1, 4))):
        if best_index is not None and best_index[row] >= 0:
            label = "" if best_iou is None else f"IoU {best_iou[row]:.2f}"
            canvas.boxes(boxes[best_index[row]], HIT, labels=[label])
        canvas.boxes(box, TRUTH, style="corners")
    return canvas.array()


def draw_pseudo_labels(
    image: np.ndarray,
    pseudo: PseudoBoxes,
    *,
    proposals: np.ndarray | None = None,
    targets: RefineTargets | None = None,
    class_names: Sequence[str] | None = None,
    truth_boxes: np.ndarray | None = None,
) -> np.ndarray:
    """Draw what mining chose: cores blue, further instances red, the proposals labeled with them thin.

    Args:
      image: [H, W, 3] uint8 RGB as the network saw it.
      pseudo: the mined boxes of one image and stage, as NumPy arrays.
      proposals: [r, 4]; those with a label > 0 in `targets` are drawn thin, in the color of the box they belong to.
      targets: their labels and boxes, as NumPy arrays; goes with `proposals`.
      class_names: names by class.
      truth_boxes: [t, 4] objects, green brackets.
    """
    canvas = Canvas(image)
    boxes, is_seed = np.reshape(pseudo.boxes, (-1, 4)), np.asarray(pseudo.is_seed, bool)
    if proposals is not None and len(boxes):
        assigned = np.asarray(targets.matched_idx)
        members = np.flatnonzero((np.asarray(targets.labels) > 0) & (assigned >= 0))
        of_core = is_seed[assigned[members]]
        for rows, color in ((members[of_core], CORE), (members[~of_core], NODE)):
            canvas.boxes(np.asarray(proposals)[rows], _pale(color), width=0.4, casing=False)
    canvas.boxes(() if truth_boxes is None else truth_boxes, TRUTH, style="corners")
    texts = [
        _label(int(c), s, class_names) for c, s in zip(pseudo.classes, pseudo.scores, strict=True)
    ]
    for chosen, color in ((~is_seed, NODE), (is_seed, CORE)):
        rows = np.flatnonzero(chosen & np.asarray(pseudo.mask, bool))
        canvas.boxes(boxes[rows], color, labels=[texts[row] for row in rows], width=1.3)
    return canvas.array()


def _pale(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the color mixed with white."""
    return tuple(int(0.45 * part + 0.55 * 255) for part in color)


def draw_graphs(
    image: np.ndarray,
    core_box: np.ndarray,
    *,
    neighbors: np.ndarray = (),
    nodes: np.ndarray = (),
    node_distances: np.ndarray | None = None,
    rejected: np.ndarray = (),
    rejected_distances: np.ndarray | None = None,
) -> np.ndarray:
    """Draw one class's spatial and appearance graphs over the image.

    The core is a blue box with blue edges to the centers of its spatial neighbors, accepted nodes are red
    boxes with red edges to the core, and rejected proposals have broken edges and boxes.

    Args:
      core_box: [4] the class's top proposal.
      neighbors: [n, 4] proposals of the core's spatial graph.
      nodes: [g, 4] accepted instances.
      node_distances: [g] appearance distance over D_avg, written on the edges.
      rejected: [m, 4] proposals beyond the distance limit; show a few.
      rejected_distances: [m] likewise.

    Source: Lin et al. 2020 (OIM), figure 3.
    """
    canvas = Canvas(image)
    center = _centers(core_box)[0]
    canvas.boxes(neighbors, _pale(CORE), width=0.4, casing=False)
    canvas.boxes(rejected, _pale(NODE), style="dashed", width=0.8)
    canvas.boxes(nodes, NODE, width=1.2)
    canvas.boxes(core_box, CORE, width=1.4)
    canvas.edges(center, _centers(neighbors), CORE, width=0.5)
    for boxes, distances, color, dashed in (
        (rejected, rejected_distances, _pale(NODE), True),
        (nodes, node_distances, NODE, False),
    ):
        texts = None if distances is None else [f"{value:.2f}" for value in distances]
        canvas.edges(center, _centers(boxes), color, labels=texts, dashed=dashed, width=0.8)
    return canvas.array()


def _centers(boxes: np.ndarray) -> np.ndarray:
    """Return the centers of boxes, [n, 2]."""
    boxes = np.reshape(boxes, (-1, 4)).astype(np.float64)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def contact_sheet(
    images: Sequence[np.ndarray],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 4,
    cell_px: int | None = 320,
    gap_px: int = 8,
) -> np.ndarray:
    """Put images into a grid with captions below them.

    Args:
      images: [H, W, 3] uint8 RGB each, of any sizes.
      captions: one text per image, cut to the cell's width.
      columns: images per row.
      cell_px: images are shrunk or enlarged to fit a square of this side; `None` keeps the largest one's size.
      gap_px: white between cells.
    Returns:
      [H, W, 3] uint8 RGB; a small white image if there are none.
    """
    if not len(images):
        return np.full((32, 32, 3), 255, np.uint8)
    side = cell_px or max(max(image.shape[:2]) for image in images)
    fitted = [_fit(image, side) for image in images]
    columns = min(columns, len(fitted))
    widths = max(image.shape[1] for image in fitted)
    text_px = int(np.clip(widths // 22, 11, 20)) if captions is not None else 0
    rows = [fitted[i : i + columns] for i in range(0, len(fitted), columns)]
    heights = [max(image.shape[0] for image in row) + 2 * text_px * bool(text_px) for row in rows]
    size = (
        columns * (widths + gap_px) + gap_px,
        sum(heights) + gap_px * (len(rows) + 1),
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    y = gap_px
    for r, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for i, image in enumerate(row):
            x = gap_px + i * (widths + gap_px)
            sheet.paste(Image.fromarray(image), (x + (widths - image.shape[1]) // 2, y))
            if text_px:
                text = _cut(draw, writable(captions[r * columns + i]), widths, text_px)
                below = y + height - 2 * text_px + text_px // 3
                draw.text(
                    (x + widths / 2, below), text, fill=INK, font=font(text_px, text), anchor="ma"
                )
        y += height + gap_px
    return np.asarray(sheet)


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    """Return the image resized so that its longer side is `side`."""
    factor = side / max(image.shape[:2])
    size = [max(1, round(length * factor)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _cut(draw, text: str, width: int, text_px: int) -> str:
    """Return the text, shortened with an ellipsis until it fits."""
    face = font(text_px, text + "…")
    if draw.textlength(text, font=face) <= width:
        return text
    while text and draw.textlength(text + "…", font=face) > width:
        text = text[:-1]
    return text + "…"
