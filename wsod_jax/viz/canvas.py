"""An image to draw on: boxes, lines and labels over an image, readable at any image size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw

from wsod_jax.viz.fonts import font

Color = tuple[int, int, int]
Style = Literal["solid", "dashed", "corners"]

# True positives, false positives and ground truth have the colors of the OIM paper's figures. Line styles differ too,
# so that the three can be told apart by color-blind readers and on gray paper.
HIT: Color = (230, 30, 40)
FALSE: Color = (255, 214, 0)
TRUTH: Color = (0, 190, 110)
CORE: Color = (40, 110, 255)
NODE: Color = (230, 30, 40)
NEUTRAL: Color = (150, 150, 150)
INK: Color = (25, 25, 25)
PAPER: Color = (255, 255, 255)

# Distinct under the common color deficiencies (after Okabe and Ito, black left out).
CLASS_COLORS: tuple[Color, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)


def class_color(index: int) -> Color:
    """Return the color of a class; they repeat after seven."""
    return CLASS_COLORS[index % len(CLASS_COLORS)]


class Canvas:
    """An image being drawn on. Coordinates are those of the image given, however much it was enlarged.

    Args:
      image: [H, W, 3] uint8 RGB; it is copied.
      min_side: smaller images are enlarged by a whole factor until their shorter side has this many pixels,
        so that labels stay readable.
    """

    def __init__(self, image: np.ndarray, *, min_side: int = 360):
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image has shape {image.shape} and type {image.dtype}; needed [H, W, 3] uint8 RGB"
            )
        height, width = image.shape[:2]
        self.factor = max(1, -(-min_side // max(1, min(height, width))))
        self.factor = min(self.factor, max(1, 4096 // max(height, width)))
        size = (width * self.factor, height * self.factor)
        self._pixels = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
        self.line_px = max(2, round(max(size) / 320))
        self.font_px = int(np.clip(max(size) // 36, 11, 28))
        self._labels: list[tuple[np.ndarray, str, Color]] = []

    def array(self) -> np.ndarray:
        """Return the drawing, [H', W', 3] uint8 RGB. Labels lie over everything else."""
        drawn = Image.fromarray(self._pixels)
        draw = ImageDraw.Draw(drawn)
        taken: list[tuple[float, float, float, float]] = []
        for corner, text, color in self._labels:
            _draw_label(draw, corner, text, color, self.font_px, drawn.size, taken)
        return np.asarray(drawn)

    def boxes(
        self,
        boxes: np.ndarray,
        color: Color,
        *,
        labels: Sequence[str] | None = None,
        style: Style = "solid",
        width: float = 1.0,
        casing: bool = True,
    ) -> Canvas:
        """Draw boxes.

        Args:
          boxes: [n, 4] `xyxy` pixels of the image given.
          color: of all of them.
          labels: n texts at their top-left corners; an empty text draws none.
          style: "corners" draws four brackets, which leaves room for another box on the same edges.
          width: of the lines, over the canvas's own.
          casing: a dark rim, so that the line shows on any ground.
        """
        thickness = max(1, round(self.line_px * width))
        for row, box in enumerate(self._scaled(np.reshape(boxes, (-1, 4)))):
            strokes = _box_strokes(box, style, self.font_px)
            if casing:
                self._strokes(strokes, INK, thickness + 2)
            self._strokes(strokes, color, thickness)
            if labels is not None and labels[row]:
                self._labels.append((box[:2], labels[row], color))
        return self

    def edges(
        self,
        start: np.ndarray,
        ends: np.ndarray,
        color: Color,
        *,
        labels: Sequence[str] | None = None,
        dashed: bool = False,
        width: float = 1.0,
    ) -> Canvas:
        """Draw lines from one point [2] to each of `ends` [n, 2], with a dot at every end and an optional text."""
        thickness = max(1, round(self.line_px * width))
        start = np.asarray(start, np.float64) * self.factor
        for row, end in enumerate(np.reshape(ends, (-1, 2)).astype(np.float64) * self.factor):
            strokes = _dashes(start, end, 5.0 * self.line_px) if dashed else [(start, end)]
            self._strokes(strokes, INK, thickness + 2)
            self._strokes(strokes, color, thickness)
            center = tuple(np.round(end).astype(int).tolist())
            cv2.circle(self._pixels, center, thickness + 2, INK, -1, cv2.LINE_AA)
            cv2.circle(self._pixels, center, thickness + 1, color, -1, cv2.LINE_AA)
            if labels is not None and labels[row]:
                self._labels.append(((start + end) / 2, labels[row], color))
        return self

    def points(self, points: np.ndarray, color: Color) -> Canvas:
        """Draw rings around points [n, 2] (x, y) in pixels of the image given."""
        for point in np.reshape(points, (-1, 2)).astype(np.float64) * self.factor:
            center = tuple(np.round(point).astype(int).tolist())
            for radius, width, ink in ((4, 3, INK), (4, 1, color)):
                cv2.circle(
                    self._pixels,
                    center,
                    radius * self.line_px,
                    ink,
                    width * self.line_px,
                    cv2.LINE_AA,
                )
        return self

    def blend(self, layer: np.ndarray, alpha: np.ndarray | float) -> Canvas:
        """Mix in a layer [H, W, 3] of the image's own size; `alpha` in [0, 1] is a number or [H, W]."""
        size = self._pixels.shape[1::-1]
        layer = cv2.resize(np.asarray(layer, np.float32), size, interpolation=cv2.INTER_LINEAR)
        if not np.isscalar(alpha):
            alpha = cv2.resize(np.asarray(alpha, np.float32), size)[..., None]
        mixed = self._pixels * (1 - alpha) + layer * alpha
        self._pixels = np.ascontiguousarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8))
        return self

    def _scaled(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes in pixels of the canvas, pulled inside it so that their edges show."""
        height, width = self._pixels.shape[:2]
        boxes = np.asarray(boxes, np.float64) * self.factor
        return np.clip(boxes, 0, [width - 1, height - 1, width - 1, height - 1])

    def _strokes(self, strokes, color: Color, thickness: int) -> None:
        """Draw straight lines given as pairs of points."""
        for start, end in strokes:
            ends = (tuple(np.round(point).astype(int).tolist()) for point in (start, end))
            cv2.line(self._pixels, *ends, color, thickness, cv2.LINE_AA)


def _box_strokes(box: np.ndarray, style: Style, bracket_px: float) -> list:
    """Return the lines that draw one box."""
    x1, y1, x2, y2 = box
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    sides = [(corners[i], corners[(i + 1) % 4]) for i in range(4)]
    if style == "solid":
        return sides
    if style == "dashed":
        return [dash for start, end in sides for dash in _dashes(start, end, 0.8 * bracket_px)]
    strokes = []
    for start, end in sides:
        arm = (end - start) * min(0.3, bracket_px / max(np.linalg.norm(end - start), 1e-6))
        strokes += [(start, start + arm), (end - arm, end)]
    return strokes


def _dashes(start: np.ndarray, end: np.ndarray, dash_px: float) -> list:
    """Return a line cut into dashes with gaps of the same length; the first and last touch the ends."""
    pieces = max(1, 2 * round(np.linalg.norm(end - start) / dash_px / 2) + 1)
    points = start + (end - start) * np.linspace(0, 1, pieces + 1)[:, None]
    return [(points[i], points[i + 1]) for i in range(0, pieces, 2)]


def _draw_label(draw, corner, text: str, color: Color, size_px: int, canvas, taken) -> None:
    """Write a text on a plate of `color`, inside the canvas and off the plates already `taken` where possible."""
    face = font(size_px, text)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=face)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(corner[0], 0), max(canvas[0] - width, 0))
    wanted = corner[1] - height if corner[1] >= height else corner[1]
    for shift in (0, height, 2 * height, -height, 3 * height):
        y = min(max(wanted + shift, 0), max(canvas[1] - height, 0))
        if not any(x < b[2] and b[0] < x + width and y < b[3] and b[1] < y + height for b in taken):
            break
    taken.append((x, y, x + width, y + height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    draw.text((x + 3 - left, y + 2 - top), text, fill=ink_on(color), font=face)


def ink_on(color: Color) -> Color:
    """Return black or white, whichever reads better on `color`."""
    return INK if np.dot(color, (0.299, 0.587, 0.114)) > 140 else PAPER


def save_image(path: str | Path, image: np.ndarray) -> Path:
    """Write an RGB image [H, W, 3] uint8 to a PNG or JPEG file, whose folder is made; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(image)).save(path, quality=92)
    return path
