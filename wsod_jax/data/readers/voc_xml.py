"""PASCAL VOC annotations, one XML per image; ILSVRC's boxes have the same format.

Boxes are 1-based with inclusive edges; (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from wsod_jax.data.readers.reader import FatalFault, frame_scale
from wsod_jax.data.records import BoxAnnotations
from wsod_jax.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.-]+)["']""", re.ASCII)
_DIFFICULT = {**dict.fromkeys(["", "0", "0.0", "false", "no"], False)}
_DIFFICULT |= dict.fromkeys(["1", "1.0", "true", "yes"], True)


def read_xml(path: Path) -> Element:
    """Return the root of an annotation.

    Raises:
      DataError: if it is missing or not XML; `FatalFault` if it declares entities.
    """
    try:
        content = path.read_bytes()
        declared = _ENCODING.match(content)  # expat supports few encodings; UTF-16 does not match
        text = content.decode(declared[1].decode()) if declared else content
        return defusedxml.ElementTree.fromstring(text)
    except DefusedXmlException as error:
        raise FatalFault(f"{path}: refused, annotations do not need {error}.") from error
    except (ParseError, ValueError, LookupError, OSError) as error:
        raise DataError(
            f"{path}: not a readable annotation ({error}); if it is XML, save it as UTF-8."
        ) from error


def named_objects(xml: Element, path: Path) -> list[tuple[str, bool]]:
    """Return (class name, is difficult) per object: the only parts of an annotation used in training.

    Raises:
      DataError: if `difficult` is neither true nor false.
    """
    return [(_name(item), _is_difficult(item, path)) for item in xml.findall("object")]


def _annotated_size(xml: Element) -> tuple[int, int] | None:
    """Return the annotated (height, width) of the image; `None` if missing or not positive."""
    try:
        sides = [float(xml.findtext(f"size/{side}") or 0) for side in ("height", "width")]
        height, width = map(round, sides)
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def class_index(name: str, names: Sequence[str], path: Path) -> int:
    """Return the position of a class name.

    Raises:
      FatalFault: if it is not one of `names`.
    """
    if name not in names:
        raise FatalFault(
            f"{path}: unknown class {name!r}; allowed are {', '.join(names)}. For other classes pass "
            "class_names, or in the VOC layout put a classes.txt next to ImageSets."
        )
    return names.index(name)


def read_boxes(
    xml: Element,
    size: tuple[int, int] | None,
    names: Sequence[str],
    path: Path,
    counts: dict[str, int],
) -> BoxAnnotations:
    """Return an annotation's objects, in pixels of the image, with continuous edges.

    If the annotated size differs from the image's, boxes are scaled.

    Args:
      xml: from `read_xml`.
      size: (height, width) of the image, to which boxes are clipped; `None` if it cannot be read: the annotated one is
        used, if any.
      names: class names of the objects, in label order.
      path: of the file, for errors.
      counts: "scaled" is incremented if boxes are scaled, "clipped" by the boxes that extend outside the image,
        "dropped" by those without area inside it or with unreadable coordinates.

    Raises:
      DataError: for another aspect, or if `difficult` is neither true nor false; `FatalFault` for an unknown class.
    """
    boxes, classes, difficult = [], [], []
    annotated = _annotated_size(xml)
    scale_x, scale_y = frame_scale(annotated, size, path)
    height, width = size or annotated or (math.inf, math.inf)
    for item in xml.findall("object"):
        index = class_index(_name(item), names, path)
        try:
            corners = [float(item.findtext(f"bndbox/{k}") or "nan") for k in _CORNERS]
        except ValueError:
            corners = [math.nan] * 4
        x1, x2 = (corners[0] - 1) * scale_x, corners[2] * scale_x
        y1, y2 = (corners[1] - 1) * scale_y, corners[3] * scale_y
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
        difficult.append(_is_difficult(item, path))
    counts["scaled"] += (scale_x, scale_y) != (1.0, 1.0)
    return BoxAnnotations.from_lists(boxes, classes, difficult)


def _name(item: Element) -> str:
    return (item.findtext("name") or "").strip()


def _is_difficult(item: Element, path: Path) -> bool:
    text = (item.findtext("difficult") or "").strip()
    if text.lower() not in _DIFFICULT:
        raise DataError(f"{path}: difficult is {text!r}; allowed are {', '.join(_DIFFICULT)}.")
    return _DIFFICULT[text.lower()]
