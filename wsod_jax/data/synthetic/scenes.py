"""Synthetic scenes with the difficulties of weak supervision.

Each object is a plain body with a small distinctive part, which suffices to recognize the class; images have several
instances of a class, textured clutter, distractors of no class, and backgrounds that co-occur with the class. Image `i`
depends only on a `SyntheticSpec` and `i`. Pixels are computed in float64: in float32, one image in seven would depend
on the vector instructions of the machine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from wsod_jax.data.synthetic.objects import (
    BODY_COLORS,
    CATALOGUE,
    ObjectClass,
    Pose,
    draw_distractor,
    draw_pose,
    outline_mask,
    paint_object,
)
from wsod_jax.errors import ConfigError

VERSION = 1
SUPERSAMPLING = 2  # scenes are drawn at twice their size and averaged down


@dataclass(frozen=True)
class SyntheticSpec:
    """The specification of a synthetic set.

    Attributes:
      seed: of all randomness.
      num_trainval: images in `trainval`, of which the last `val_fraction` are `val` and the rest `train`.
      num_test: images in `test`.
      val_fraction: fraction of `trainval` that is `val`.
      size: longer side of an image in pixels.
      aspects: width / height of the images, drawn uniformly; (1.0,) makes all of them square.
      classes: names in `CATALOGUE`, in the order of their indices.
      objects_per_image: 0 draws several objects of one or two classes; 1 draws exactly one object, for pretraining a
        classifier.
      object_side: (smallest, largest) side of an object over the image's shorter side, log-uniform.
      two_classes: probability that an image has two classes instead of one.
      instances: probabilities of 1, 2, 3 … instances of each class in an image.
      rotation: largest rotation in degrees.
      deformation: largest relative stretch, shear and bend.
      max_overlap: largest fraction of an object's mask that overlaps another object.
      distractors: (fewest, most) objects of no class in an image.
      decoys: probability that a distractor has the part of a random class, so that a part does not prove the class.
      clutter: strength of the background's texture and blotches, 0 is flat color.
      context: probability that the background's colors are those of a class in the image; else of a random one.
      part_contrast: 1 paints parts in their own colors, 0 in the body's: lower makes parts less dominant.
      part_probability: probability that an object's part is visible; else it looks like the body. Below 1 for
        pretraining, so that a backbone learns bodies too, as from photographs.
      body_contrast: depth of the class-typical body texture: higher makes whole objects easier to learn.
      noise: standard deviation of pixel noise, of 255.
      void: if True, masks mark a one-pixel border around objects as void (255).
    """

    seed: int = 0
    num_trainval: int = 300
    num_test: int = 150
    val_fraction: float = 0.2
    size: int = 160
    aspects: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = tuple(CATALOGUE)
    objects_per_image: int = 0
    object_side: tuple[float, float] = (0.3, 0.65)
    two_classes: float = 0.4
    instances: tuple[float, ...] = (0.5, 0.32, 0.18)
    rotation: float = 20.0
    deformation: float = 0.1
    max_overlap: float = 0.1
    distractors: tuple[int, int] = (0, 3)
    decoys: float = 0.5
    clutter: float = 0.8
    context: float = 0.7
    part_contrast: float = 1.0
    part_probability: float = 1.0
    body_contrast: float = 0.2
    noise: float = 4.0
    void: bool = False

    def __post_init__(self):
        unknown = [name for name in self.classes if name not in CATALOGUE]
        if unknown or not self.classes or len(set(self.classes)) != len(self.classes):
            raise ConfigError(
                f"classes must be distinct names among {sorted(CATALOGUE)}, found {list(self.classes)}."
            )
        low, high = self.object_side
        if not 0.05 <= low <= high <= 0.95:
            raise ConfigError(f"object_side must be in [0.05, 0.95], found {self.object_side}.")
        if self.size < 32:
            raise ConfigError(f"size must be at least 32 pixels, found {self.size}.")
        if self.objects_per_image not in (0, 1):
            raise ConfigError(
                f"objects_per_image must be 0 (several) or 1, found {self.objects_per_image}."
            )
        if self.num_trainval < 1 or self.num_test < 0 or not 0 <= self.val_fraction < 1:
            raise ConfigError(
                "num_trainval must be at least 1, num_test at least 0 and val_fraction in [0, 1), found "
                f"{self.num_trainval}, {self.num_test} and {self.val_fraction}."
            )
        if not self.aspects or not all(0.25 <= aspect <= 4 for aspect in self.aspects):
            raise ConfigError(f"aspects must be in [0.25, 4], found {self.aspects}.")
        if not self.instances or min(self.instances) < 0 or sum(self.instances) <= 0:
            raise ConfigError(f"instances must be probabilities, found {self.instances}.")
        if not 0 <= self.distractors[0] <= self.distractors[1]:
            raise ConfigError(f"distractors must be (fewest, most), found {self.distractors}.")
        shares = (
            "two_classes",
            "decoys",
            "context",
            "part_contrast",
            "part_probability",
            "body_contrast",
            "clutter",
            "max_overlap",
        )
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], found {getattr(self, name)}.")


def pretraining_spec(spec: SyntheticSpec, *, num_trainval: int = 1200, num_test: int = 200):
    """Return the specification of one-object images for pretraining a classifier for `spec`'s classes.

    Another seed, larger objects, one per image, half of them without their part, and no decoys; no image or object is
    the same as in `spec`.
    """
    return dataclasses.replace(
        spec,
        seed=spec.seed + 1_000_003,
        num_trainval=num_trainval,
        num_test=num_test,
        objects_per_image=1,
        object_side=(0.35, 0.8),
        part_probability=0.5,
        decoys=0.0,
    )


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: its class, and the visible pixels of the whole and of its part, [H, W] bool."""

    class_index: int
    mask: np.ndarray
    part_mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image, [H, W, 3] uint8 RGB, and its objects."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Return the tightest box [4] float32 (x1, y1, x2, y2), continuous edges, around a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _draw_classes(spec: SyntheticSpec, rng: np.random.Generator) -> list[int]:
    """Draw the class of every object of an image."""
    if spec.objects_per_image == 1:
        return [int(rng.integers(len(spec.classes)))]
    num_classes = 1 + int(len(spec.classes) > 1 and rng.random() < spec.two_classes)
    chosen = rng.choice(len(spec.classes), num_classes, replace=False)
    probabilities = np.asarray(spec.instances) / np.sum(spec.instances)
    counts = 1 + rng.choice(len(probabilities), num_classes, p=probabilities)
    return rng.permutation(np.repeat(chosen, counts)).tolist()


def _draw_background(
    spec: SyntheticSpec, looks: ObjectClass, height: int, width: int, rng
) -> np.ndarray:
    """Paint a [height, width, 3] float64 background: cloudy texture in two colors, and blotches."""
    clouds = np.zeros((height, width))
    for cells, weight in ((3, 0.5), (7, 0.35), (16, 0.3), (40, 0.25)):
        grid = rng.standard_normal((cells, cells))
        clouds += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    blend = (1 / (1 + np.exp(-5 * spec.clutter * clouds)))[:, :, None]
    first, second = np.asarray(looks.context) + rng.uniform(-16, 16, (2, 3))
    canvas = first * blend + second * (1 - blend)

    scale = min(height, width)
    for _ in range(round(spec.clutter * 60)):
        color = (first + second) / 2 + rng.normal(0, 44 * spec.clutter, 3)
        middle = rng.uniform(0, 1, 2) * (width, height)
        radii = scale * rng.uniform(0.004, 0.06, 2) * (rng.uniform(1, 2.5), 1)
        ellipse = cv2.RotatedRect(middle.tolist(), radii.tolist(), rng.uniform(0, 180))
        cv2.ellipse(canvas, ellipse, color.tolist(), cv2.FILLED, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 1.2)


def _place(
    looks: ObjectClass, spec: SyntheticSpec, taken: list[np.ndarray], shape: tuple[int, int], rng
) -> tuple[Pose, np.ndarray] | None:
    """Find a pose that fits into the image and overlaps little with other objects, or None."""
    height, width = shape
    low, high = np.log(spec.object_side)
    side = np.exp(rng.uniform(low, high)) * min(shape)
    smallest = spec.object_side[0] * min(shape)
    for _ in range(60):
        pose = draw_pose(rng, side=side, rotation=spec.rotation, deformation=spec.deformation)
        corners = np.concatenate([pose.to_pixels(c) for c in (looks.body, looks.part) if c])
        lowest, highest = corners.min(0), corners.max(0)
        room = np.array([width, height]) - (highest - lowest) - 4
        if (room < 0).any():
            side = 0.9 * side
            continue
        side = max(min(side, smallest), 0.96 * side)
        pose = dataclasses.replace(pose, center=2 - lowest + rng.uniform(0, 1, 2) * room)
        mask = outline_mask(pose.to_pixels(looks.body), height, width)
        if looks.part:
            mask |= outline_mask(pose.to_pixels(looks.part), height, width)
        shared = [np.count_nonzero(mask & other) for other in taken]
        areas = [min(np.count_nonzero(mask), np.count_nonzero(other)) for other in taken]
        if all(s <= spec.max_overlap * a for s, a in zip(shared, areas, strict=True)):
            return pose, mask
    return None


def _body_color(canvas: np.ndarray, mask: np.ndarray, rng) -> np.ndarray:
    """Draw a body color that stands out from the image around it, [3] float64 RGB."""
    surroundings = canvas[mask].mean(0)
    palette = np.asarray(BODY_COLORS) + rng.uniform(-10, 10, 3)
    distance = np.linalg.norm(palette - surroundings, axis=1)
    candidates = np.flatnonzero(distance >= min(70.0, distance.max()))
    return palette[rng.choice(candidates)]


def render_scene(spec: SyntheticSpec, index: int) -> Scene:
    """Draw image `index` of a set.

    The first object always finds a place; further ones that find none are left out.
    """
    rng = np.random.default_rng([VERSION, spec.seed, index])
    aspect = spec.aspects[rng.integers(len(spec.aspects))]
    height = round(spec.size / max(aspect, 1.0)) * SUPERSAMPLING
    width = round(spec.size * min(aspect, 1.0)) * SUPERSAMPLING
    class_indices = _draw_classes(spec, rng)
    names = [spec.classes[i] for i in class_indices]
    backdrop = names[0] if rng.random() < spec.context else rng.choice(spec.classes)
    canvas = _draw_background(spec, CATALOGUE[str(backdrop)], height, width, rng)

    num_distractors = rng.integers(spec.distractors[0], spec.distractors[1] + 1)
    things = [(i, CATALOGUE[name]) for i, name in zip(class_indices, names, strict=True)]
    things += [(-1, _draw_distractor(spec, rng)) for _ in range(num_distractors)]
    taken, painted = [], []
    for class_index, looks in things:
        placed = _place(looks, spec, taken, (height, width), rng)
        if placed is None:
            continue
        pose, mask = placed
        whole, part = paint_object(
            canvas,
            looks,
            pose,
            body_color=_body_color(canvas, mask, rng),
            part_contrast=spec.part_contrast if rng.random() < spec.part_probability else 0.0,
            body_contrast=spec.body_contrast,
            rng=rng,
        )
        painted = [(i, w & ~whole, p & ~whole) for i, w, p in painted] + [
            (class_index, whole, part)
        ]
        taken.append(whole)
    return _finish(spec, canvas, painted, rng)


def _draw_distractor(spec: SyntheticSpec, rng: np.random.Generator) -> ObjectClass:
    """Draw a distractor, with a class's part at probability `decoys`."""
    looks = draw_distractor(rng)
    if rng.random() >= spec.decoys:
        return looks
    model = CATALOGUE[str(rng.choice(spec.classes))]
    return dataclasses.replace(
        looks,
        part=looks.part or looks.body,
        part_pattern=model.part_pattern,
        part_colors=model.part_colors,
    )


def _finish(spec: SyntheticSpec, canvas: np.ndarray, painted: list, rng) -> Scene:
    """Average the canvas down to its size, add light and noise, and shrink the masks with it."""
    height, width = canvas.shape[0] // SUPERSAMPLING, canvas.shape[1] // SUPERSAMPLING
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    light = rng.uniform(-0.12, 0.12, 3)
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    image = image * (1 + light[0] + light[1] * across + light[2] * down)[:, :, None]
    image = image + rng.normal(0, spec.noise, image.shape)

    def shrink(mask):
        small = cv2.resize(mask.astype(np.float64), (width, height), interpolation=cv2.INTER_AREA)
        return small > 0.5

    shrunk = [
        SceneObject(class_index, shrink(whole), shrink(part))
        for class_index, whole, part in painted
        if class_index >= 0
    ]
    objects = tuple(item for item in shrunk if item.mask.any())  # one may be hidden completely
    return Scene(image=np.clip(np.round(image), 0, 255).astype(np.uint8), objects=objects)
