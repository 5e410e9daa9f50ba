"""The objects of synthetic scenes: six classes, each a plain body with one distinctive part.

A class has an outline (its body), a small patterned part attached to it, and a faint body texture. The part suffices
to recognize the class, so a detector trained by image labels tends to find only the part; outline and texture make the
whole object learnable. Outlines are in a unit frame, x right and y down, about [-1, 1] on both axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Color = tuple[int, int, int]
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return vertical stripes, 0 or 1, of period 0.8 part radii."""
    return (np.sin(2 * np.pi * x / 0.8) > 0).astype(float)


def chevrons(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return nested arrowheads pointing up."""
    return (np.sin(2 * np.pi * (y - 0.7 * np.abs(x)) / 0.8) > 0).astype(float)


def rings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return concentric rings."""
    return (np.cos(2 * np.pi * np.hypot(x, y) / 0.75) > 0).astype(float)


def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a checkerboard."""
    return (np.sin(np.pi * x / 0.45) * np.sin(np.pi * y / 0.45) > 0).astype(float)


def dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a lattice of round dots."""
    return (np.cos(2 * np.pi * x / 0.75) + np.cos(2 * np.pi * y / 0.75) > 0.5).astype(float)


def quarters(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return four quarters, opposite ones alike."""
    return (x * y > 0).astype(float)


def plain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return no pattern: zeros."""
    return np.zeros_like(x)


@dataclass(frozen=True)
class ObjectClass:
    """The appearance of a class.

    Attributes:
      body: corners of the body's outline in the unit frame; drawn with rounded corners.
      part: corners of the part's outline in the unit frame.
      part_pattern: pattern of the part; its unit is half the part's mean side.
      part_colors: the pattern's two colors, RGB.
      body_pattern: faint texture of the body, in the same unit.
      context: the two background colors (RGB) that co-occur with the class.
    """

    body: tuple[tuple[float, float], ...]
    part: tuple[tuple[float, float], ...]
    part_pattern: Pattern
    part_colors: tuple[Color, Color]
    body_pattern: Pattern
    context: tuple[Color, Color]


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, corners: int = 14):
    angles = np.arange(corners) * (2 * np.pi / corners)
    points = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], -1)
    return tuple(map(tuple, points.round(4)))


# fmt: off
CATALOGUE: dict[str, ObjectClass] = {
    "fish": ObjectClass(
        body=((-0.55, -0.40), (-0.1, -0.56), (0.3, -0.42), (0.55, -0.16), (0.95, -0.62), (0.86, 0.0),
              (0.95, 0.62), (0.55, 0.16), (0.3, 0.42), (-0.1, 0.56), (-0.55, 0.40)),
        part=_ellipse(-0.58, 0.0, 0.40, 0.46),
        part_pattern=stripes, part_colors=((247, 126, 24), (252, 246, 232)),
        body_pattern=dots, context=((58, 118, 140), (36, 84, 116)),
    ),
    "rocket": ObjectClass(
        body=((-0.36, -0.5), (0.36, -0.5), (0.40, 0.25), (0.82, 0.62), (0.80, 0.98), (0.35, 0.78),
              (-0.35, 0.78), (-0.80, 0.98), (-0.82, 0.62), (-0.40, 0.25)),
        part=((-0.44, -0.34), (-0.40, -0.62), (-0.14, -1.0), (0.14, -1.0), (0.40, -0.62), (0.44, -0.34)),
        part_pattern=chevrons, part_colors=((214, 30, 46), (250, 226, 226)),
        body_pattern=stripes, context=((70, 62, 104), (46, 42, 72)),
    ),
    "snail": ObjectClass(
        body=((-0.98, -0.22), (-0.78, -0.52), (-0.56, -0.36), (-0.52, 0.06), (-0.1, 0.12), (0.3, 0.0),
              (0.62, 0.16), (1.0, 0.62), (0.9, 0.72), (-0.62, 0.72), (-0.86, 0.5)),
        part=_ellipse(0.14, -0.12, 0.50, 0.48),
        part_pattern=rings, part_colors=((122, 46, 150), (246, 208, 92)),
        body_pattern=checks, context=((108, 140, 72), (76, 110, 58)),
    ),
    "tulip": ObjectClass(
        body=((-0.13, -0.3), (0.13, -0.3), (0.2, 0.12), (0.7, -0.28), (0.84, 0.12), (0.62, 0.62),
              (0.28, 0.98), (-0.28, 0.98), (-0.62, 0.62), (-0.84, 0.12), (-0.7, -0.28), (-0.2, 0.12)),
        part=((-0.46, -0.98), (-0.2, -0.74), (0.0, -1.0), (0.2, -0.74), (0.46, -0.98), (0.48, -0.45),
              (0.2, -0.14), (-0.2, -0.14), (-0.48, -0.45)),
        part_pattern=checks, part_colors=((232, 58, 140), (255, 214, 236)),
        body_pattern=chevrons, context=((140, 112, 82), (106, 82, 62)),
    ),
    "bird": ObjectClass(
        body=((-0.5, -0.55), (-0.1, -0.3), (0.36, -0.12), (1.0, -0.5), (0.94, 0.1), (0.6, 0.5),
              (0.2, 0.62), (0.16, 0.86), (-0.1, 0.86), (-0.12, 0.62), (-0.5, 0.4), (-0.66, 0.0)),
        part=((-1.0, -0.36), (-0.86, -0.62), (-0.62, -0.82), (-0.3, -0.78), (-0.12, -0.5), (-0.18, -0.16),
              (-0.48, -0.02), (-0.76, -0.14)),
        part_pattern=dots, part_colors=((24, 96, 210), (250, 238, 130)),
        body_pattern=rings, context=((150, 178, 196), (186, 200, 204)),
    ),
    "cat": ObjectClass(
        body=((-0.3, -0.3), (0.3, -0.3), (0.52, 0.2), (0.66, 0.45), (0.86, 0.1), (0.98, 0.3), (0.84, 0.86),
              (0.6, 1.0), (-0.6, 1.0), (-0.62, 0.6), (-0.46, 0.2)),
        part=((-0.5, -1.0), (-0.24, -0.84), (0.24, -0.84), (0.5, -1.0), (0.54, -0.5), (0.36, -0.18),
              (-0.36, -0.18), (-0.54, -0.5)),
        part_pattern=quarters, part_colors=((28, 30, 36), (232, 240, 236)),
        body_pattern=quarters, context=((176, 150, 120), (198, 178, 140)),
    ),
}

BODY_COLORS: tuple[Color, ...] = (  # shared by all classes and distractors, so that color predicts no class
    (196, 150, 104), (120, 148, 176), (150, 176, 126), (192, 128, 140), (168, 160, 190), (204, 196, 168),
    (112, 120, 120), (206, 176, 110), (110, 160, 156), (146, 112, 92), (226, 214, 206), (88, 92, 124),
)
# fmt: on

DISTRACTOR_BODIES = (
    _ellipse(0.0, 0.0, 0.95, 0.62),
    ((-0.85, -0.6), (0.85, -0.7), (0.8, 0.65), (-0.9, 0.6)),
    ((0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)),
    ((-0.95, -0.3), (-0.3, -0.35), (-0.25, -0.95), (0.3, -0.9), (0.3, -0.3), (0.95, -0.25), (0.9, 0.35),
     (0.3, 0.3), (0.25, 0.95), (-0.3, 0.9), (-0.35, 0.3), (-0.95, 0.3)),
)  # fmt: skip


def draw_distractor(rng: np.random.Generator) -> ObjectClass:
    """Draw the appearance of a distractor: a body outline of no class, with at most a plain part.

    Its part, if any, has one color of a random class, without pattern.
    """
    body = DISTRACTOR_BODIES[rng.integers(len(DISTRACTOR_BODIES))]
    model = list(CATALOGUE.values())[rng.integers(len(CATALOGUE))]
    color = model.part_colors[rng.integers(2)]
    part = _ellipse(*rng.uniform(-0.45, 0.45, 2), *rng.uniform(0.28, 0.42, 2))
    if rng.random() < 0.4:  # only a part-like blob
        body = part
    return ObjectClass(
        body=body,
        part=part if rng.random() < 0.6 else (),
        part_pattern=plain,
        part_colors=(color, color),
        body_pattern=plain,
        context=model.context,
    )


def round_corners(corners: np.ndarray, sweeps: int = 2) -> np.ndarray:
    """Cut every corner of a closed polygon [n, 2]; each sweep doubles the number of corners."""
    for _ in range(sweeps):
        following = np.roll(corners, -1, axis=0)
        cut = np.stack([0.8 * corners + 0.2 * following, 0.2 * corners + 0.8 * following], axis=1)
        corners = cut.reshape(-1, 2)
    return corners


@dataclass(frozen=True)
class Pose:
    """Position and shape of an object: `pixels = center + linear @ bend(unit)`.

    Attributes:
      center: [2] pixels (x, y).
      linear: [2, 2] rotation, scale, shear and mirroring, pixels per unit.
      bend: amplitude of a sideways wave along the object, in units.
    """

    center: np.ndarray
    linear: np.ndarray
    bend: float

    def to_pixels(self, corners: tuple[tuple[float, float], ...]) -> np.ndarray:
        """Return the rounded outline of `corners` as [n, 2] pixels."""
        unit = round_corners(np.asarray(corners, np.float64))
        unit = unit + self.bend * np.stack([np.sin(2 * unit[:, 1]), np.sin(2 * unit[:, 0])], -1)
        return self.center + unit @ self.linear.T


def draw_pose(
    rng: np.random.Generator, *, side: float, rotation: float, deformation: float
) -> Pose:
    """Draw a pose around the origin.

    Args:
      rng: random generator.
      side: length in pixels of the unit frame's side (2 units).
      rotation: largest angle in degrees, either way.
      deformation: largest relative stretch, shear and bend.
    """
    angle = np.radians(rng.uniform(-rotation, rotation))
    cos, sin = np.cos(angle), np.sin(angle)
    stretch, shear, bend = rng.uniform(-deformation, deformation, 3)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    shape = np.array([[mirror * (1 + stretch), shear], [0.0, 1 - stretch]])
    linear = np.array([[cos, -sin], [sin, cos]]) @ shape * (side / 2)
    return Pose(center=np.zeros(2), linear=linear, bend=bend / 2)


def outline_mask(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the [height, width] bool mask of the pixels inside a polygon given in pixels [n, 2]."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


def _unit_grid(pose: Pose, corners: np.ndarray, rows: np.ndarray, columns: np.ndarray):
    """Return pattern coordinates of pixels: 0 at the outline's middle, 1 at half its mean side."""
    middle = (corners.min(0) + corners.max(0)) / 2
    radius = np.mean(corners.max(0) - corners.min(0)) / 2
    frame = pose.linear / np.sqrt(abs(np.linalg.det(pose.linear)))
    offsets = (np.stack([columns, rows], -1) - middle) @ np.linalg.inv(frame).T / radius
    return offsets[:, 0], offsets[:, 1]


def paint_object(
    canvas: np.ndarray,
    looks: ObjectClass,
    pose: Pose,
    *,
    body_color: np.ndarray,
    part_contrast: float,
    body_contrast: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one object onto a float64 RGB canvas, in place.

    Args:
      canvas: [H, W, 3] float64, 0..255.
      looks: appearance of the object.
      pose: of the object.
      body_color: [3] RGB.
      part_contrast: 1 paints the part in its own colors, 0 in the body's.
      body_contrast: depth of the body's texture, as a fraction of its brightness.
      rng: random generator, for color jitter.

    Returns:
      [H, W] bool masks of the whole object and of its part.
    """
    height, width = canvas.shape[:2]
    outline = pose.to_pixels(looks.body)
    body = outline_mask(outline, height, width)
    part = np.zeros_like(body)

    rows, columns = np.nonzero(body)
    x, y = _unit_grid(pose, outline, rows, columns)
    texture = looks.body_pattern(2.2 * x, 2.2 * y) - 0.5
    shade = 1 + body_contrast * texture + 0.05 * x  # slight light from one side
    canvas[rows, columns] = body_color * shade[:, None]

    if looks.part:
        outline = pose.to_pixels(looks.part)
        part = outline_mask(outline, height, width)
        rows, columns = np.nonzero(part)
        pattern = looks.part_pattern(*_unit_grid(pose, outline, rows, columns))[:, None]
        first, second = np.asarray(looks.part_colors) + rng.uniform(-14, 14, (2, 3))
        colors = first * (1 - pattern) + second * pattern
        canvas[rows, columns] = body_color + part_contrast * (colors - body_color)
    return body | part, part
