"""Annotations as PASCAL VOC writes them, one XML per image; ILSVRC's boxes come in the same form.

Boxes are 1-based with inclusive edges; (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from wsod_jax.data.readers.reader import HostileFile
from wsod_jax.data.records import BoxAnnotations
from wsod_jax.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_xml(path: Path) -> Element:
    """Return the root of an annotation.

    Raises:
      DataError: if it is missing or not XML; `HostileFile` if it declares entities.
    """
    try:
        return defusedxml.ElementTree.parse(path).getroot()
    except DefusedXmlException as error:
        raise HostileFile(f"{path}: refused, annotations have no need of {error}.") from error
    except (ParseError, ValueError, LookupError, OSError) as error:
        raise DataError(f"{path}: not a readable annotation ({error}).") from error


def named_objects(xml: Element) -> list[tuple[str, bool]]:
    """Return (class name, is difficult) per object: all that training may know of an annotation."""
    return [(_name(item), _is_difficult(item)) for item in xml.findall("object")]


def annotated_size(xml: Element) -> tuple[int, int] | None:
    """Return the image's (height, width) as annotated, `None` where that is missing or not positive."""
    try:
        height, width = (int(xml.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def class_index(name: str, names: Sequence[str], path: Path) -> int:
    """Return the position of a class name.

    Raises:
      DataError: if it is none of `names`.
    """
    if name not in names:
        raise DataError(
            f"{path}: unknown class {name!r}; allowed are {', '.join(names)}. For other classes pass "
            "class_names, or in the VOC layout put a classes.txt beside ImageSets."
        )
    return names.index(name)


def read_boxes(
    xml: Element,
    size: tuple[int, int] | None,
    names: Sequence[str],
    path: Path,
    counts: dict[str, int],
) -> BoxAnnotations:
    """Return an annotation's objects, in pixels with continuous edges.

    Args:
      xml: from `read_xml`.
      size: (height, width) that boxes are clipped to; `None` if unknown.
      names: class names as the objects bear them, in label order.
      path: of the file, for errors.
      counts: "clipped" grows by the boxes that reach outside the image, "dropped" by those left out for
        no area inside it or unreadable coordinates.

    Raises:
      DataError: for an unknown class.
    """
    boxes, classes, difficult = [], [], []
    height, width = size or (math.inf, math.inf)
    for item in xml.findall("object"):
        index = class_index(_name(item), names, path)
        try:
            corners = [float(item.findtext(f"bndbox/{k}") or "nan") for k in _CORNERS]
        except ValueError:
            corners = [math.nan] * 4
        x1, y1, x2, y2 = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        if not all(map(math.isfinite, corners)):
            counts["dropped"] += 1
            continue
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            counts["dropped"] += 1
            continue
        counts["clipped"] += inside != (x1, y1, x2, y2)
        boxes.append(inside)
        classes.append(index)
        difficult.append(_is_difficult(item))
    return BoxAnnotations.from_lists(boxes, classes, difficult)


def _name(item: Element) -> str:
    return (item.findtext("name") or "").strip()


def _is_difficult(item: Element) -> bool:
    return (item.findtext("difficult") or "0").strip() == "1"
