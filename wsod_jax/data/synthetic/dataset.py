"""Write a synthetic detection set as an ordinary VOC tree: images, XML, splits and segmentation masks."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wsod_jax.data.synthetic.scenes import (
    VERSION,
    Scene,
    SyntheticSpec,
    mask_box,
    pretraining_spec,
    render_scene,
)
from wsod_jax.errors import DataError
from wsod_jax.files import atomic_write

__all__ = ["SyntheticSpec", "is_complete", "pretraining_spec", "split_ids", "write_synthetic"]

VOID = 255
SPEC_FILE = "spec.json"
FOLDERS = (
    "JPEGImages",
    "Annotations",
    "ImageSets/Main",
    "ImageSets/Segmentation",
    "SegmentationObject",
    "SegmentationClass",
)


def split_ids(spec: SyntheticSpec) -> dict[str, list[str]]:
    """Return the image ids of `train`, `val`, `trainval` and `test`; the id of image `i` is `i + 1`."""
    names = [f"{i + 1:06d}" for i in range(spec.num_trainval + spec.num_test)]
    trainval, test = names[: spec.num_trainval], names[spec.num_trainval :]
    num_train = spec.num_trainval - round(spec.val_fraction * spec.num_trainval)
    return {
        "train": trainval[:num_train],
        "val": trainval[num_train:],
        "trainval": trainval,
        "test": test,
    }


def voc_palette() -> np.ndarray:
    """Return the [256, 3] uint8 colors of VOC's masks: bits of the index, alternating between R, G and B."""
    index = np.arange(256)
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def _write_mask(path: Path, indices: np.ndarray) -> None:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette(voc_palette().tobytes())
    image.save(path, optimize=False)


def _add_box(parent: ElementTree.Element, box: np.ndarray) -> None:
    """Add a <bndbox>: VOC counts pixels from 1 and includes the last one."""
    element = ElementTree.SubElement(parent, "bndbox")
    first_to_last = {"xmin": box[0] + 1, "ymin": box[1] + 1, "xmax": box[2], "ymax": box[3]}
    for name, value in first_to_last.items():
        ElementTree.SubElement(element, name).text = str(int(value))


def _annotation(name: str, scene: Scene, classes: tuple[str, ...]) -> str:
    """Return the VOC XML of one image; each object's distinctive part is its <part>."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "synthetic"
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(root, "size")
    for field, value in zip(("height", "width", "depth"), scene.image.shape, strict=True):
        ElementTree.SubElement(size, field).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for item in scene.objects:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = classes[item.class_index]
        for field, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(element, field).text = value
        _add_box(element, mask_box(item.mask))
        if item.part_mask.any():
            part = ElementTree.SubElement(element, "part")
            ElementTree.SubElement(part, "name").text = "head"
            _add_box(part, mask_box(item.part_mask))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _masks(scene: Scene, *, void: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the [H, W] instance numbers (object order, from 1) and class numbers (index + 1), 0 elsewhere."""
    instances = np.zeros(scene.image.shape[:2], np.uint8)
    classes = np.zeros_like(instances)
    for number, item in enumerate(scene.objects, start=1):
        instances[item.mask] = number
        classes[item.mask] = item.class_index + 1
    if void:
        square = np.ones((3, 3), np.uint8)
        border = cv2.dilate(instances, square) != cv2.erode(instances, square)
        instances[border] = classes[border] = VOID
    return instances, classes


def _write_scene(root: Path, name: str, scene: Scene, spec: SyntheticSpec) -> None:
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
    annotation = _annotation(name, scene, spec.classes)
    (root / "Annotations" / f"{name}.xml").write_text(annotation, encoding="utf-8")
    instances, classes = _masks(scene, void=spec.void)
    _write_mask(root / "SegmentationObject" / f"{name}.png", instances)
    _write_mask(root / "SegmentationClass" / f"{name}.png", classes)


def _write_splits(root: Path, spec: SyntheticSpec, present: dict[str, set[int]]) -> None:
    """Write ImageSets: a list per split, and per class and split the list with 1 (present) or -1 (absent)."""
    for split, names in split_ids(spec).items():
        text = "".join(f"{name}\n" for name in names)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
        for index, class_name in enumerate(spec.classes):
            lines = (f"{name} {1 if index in present[name] else -1:2d}\n" for name in names)
            (root / "ImageSets" / "Main" / f"{class_name}_{split}.txt").write_text("".join(lines))


def _stamp(spec: SyntheticSpec) -> dict:
    """Return the content of spec.json, as read back from JSON."""
    return json.loads(json.dumps({"version": VERSION, **dataclasses.asdict(spec)}))


def is_complete(root: str | Path, spec: SyntheticSpec) -> bool:
    """Return whether `root` contains the finished set of exactly this specification.

    Raises:
      DataError: if `root` contains the finished set of another specification.
    """
    path = Path(root) / SPEC_FILE
    if not path.exists():
        return False
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    current = _stamp(spec)
    if stored == current:
        return True
    differing = sorted(k for k in current.keys() | stored.keys() if stored.get(k) != current.get(k))
    raise DataError(
        f"{root} already contains a synthetic set with other settings (different: {', '.join(differing)}). "
        "Use another folder or the same settings, or delete it."
    )


def write_synthetic(
    root: str | Path,
    spec: SyntheticSpec,
    *,
    progress: Callable[[list[str]], Iterable[str]] | None = None,
) -> bool:
    """Write the set of a specification into `root`, unless it is already there.

    The layout is VOC's: JPEGImages, Annotations (boxes, and each distinctive part as a <part>), ImageSets/Main and
    /Segmentation, SegmentationObject, SegmentationClass, plus classes.txt, the class names in index order, and
    spec.json, written last. An interrupted set is drawn again from its start.

    Args:
      root: the folder to fill; made if missing.
      spec: of the set.
      progress: wraps the iteration over images, e.g. `tqdm`; `None` shows nothing.

    Returns:
      True if the set was written, False if it was complete already.

    Raises:
      DataError: if `root` contains the set of another specification.
    """
    root = Path(root)
    if is_complete(root, spec):
        return False
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    ids = split_ids(spec)
    names = ids["trainval"] + ids["test"]
    present: dict[str, set[int]] = {}
    for index, name in enumerate(progress(names) if progress else names):
        scene = render_scene(spec, index)
        _write_scene(root, name, scene, spec)
        present[name] = {item.class_index for item in scene.objects}
    _write_splits(root, spec, present)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in spec.classes))
    with atomic_write(root / SPEC_FILE) as file:
        file.write(json.dumps(_stamp(spec), indent=2) + "\n")
    return True
