"""Reader of tensorflow-datasets' `voc/2007` and `voc/2012`, where they are prepared. Never downloads.

Encoded images are kept in memory (0.4 GB for the trainval split of VOC 2007), since its record files have no
random access.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from wsod_jax.data.images import image_size
from wsod_jax.data.input.loading import import_tensorflow
from wsod_jax.data.readers.reader import BoxReader, LeftOut
from wsod_jax.data.readers.voc import DifficultRule, difficult_label
from wsod_jax.data.records import BoxAnnotations, GroundTruth, ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.ops.boxes import box_area, clip_boxes
from wsod_jax.options import Mark

if TYPE_CHECKING:
    import tensorflow_datasets

_SPLITS = {"trainval": "train+validation", "val": "validation"}  # VOC's names for them


@dataclass(frozen=True, kw_only=True)
class Tfds(BoxReader):
    """A prepared data set in the form of tensorflow-datasets' VOC.

    Attributes:
      name: "voc/2007" or "voc/2012", with or without a version.
      data_dir: where it is prepared; ~/tensorflow_datasets by default.
      difficult: the label of a class of which an image has difficult objects only, as in `Voc`.
    """

    name: str
    data_dir: Annotated[str | Path | None, Mark.LOCATION] = None
    train_split: str = "trainval"
    test_split: str = "test"
    difficult: DifficultRule = "drop"

    def __post_init__(self):
        super().__post_init__()
        difficult_label(self.difficult)

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their image-level labels; boxes are not decoded.

        Args:
          split: "train", "val", "trainval", "test", or any split expression of tensorflow-datasets.

        Returns:
          The images; ids are the file names without suffix, as in the VOC layout.

        Raises:
          DataError: if the data set is not there or is not like VOC, or the split is unknown.
          ConfigError: if tensorflow-datasets is not installed.
        """
        if_difficult = difficult_label(self.difficult)
        builder = _prepared(self.name, self.data_dir)
        class_names = _class_names(builder)
        records, counts, left_out = [], {}, LeftOut(self.on_bad)
        for example in _examples(builder, split, ("labels", "labels_no_difficult")):
            image_id, encoded = _image(example)
            labels = np.zeros(len(class_names), int)
            labels[example["labels"]] = if_difficult
            labels[example["labels_no_difficult"]] = 1
            try:
                size = image_size(encoded, name=image_id)
            except DataError as error:
                left_out.add(image_id, error)
                continue
            source = functools.partial(bytes, encoded)
            records.append(ImageRecord(image_id, source, *size, tuple(labels.tolist())))
        name, missing = f"{self.name} {split}", tuple(left_out.ids)
        left_out.finish(name, len(records), counts)
        return ImageSet(name, class_names, tuple(records), counts, missing=missing)

    def ground_truth(self, split: str) -> GroundTruth:
        """Read the boxes of a split, for evaluation.

        The data set holds VOC's 1-based inclusive edges divided by the image's size; they become continuous
        edges in pixels, as in `Voc.ground_truth`.

        Args:
          split: as in `images`.

        Returns:
          Boxes of every image of the split whose size can be read, difficult ones included and marked.

        Raises:
          DataError: as in `images`.
          ConfigError: likewise.
        """
        builder = _prepared(self.name, self.data_dir)
        boxes, counts, left_out = {}, Counter(clipped=0, dropped=0), LeftOut(self.on_bad)
        for example in _examples(builder, split, ("objects",)):
            image_id, encoded = _image(example)
            try:
                size = image_size(encoded, name=image_id)
            except DataError as error:
                left_out.add(image_id, error)
                continue
            boxes[image_id] = _boxes(example["objects"], size, counts)
        left_out.finish(f"ground truth of {self.name} {split}", len(boxes), counts)
        return GroundTruth(_class_names(builder), boxes, dict(counts))


def _prepared(name: str, data_dir: str | Path | None) -> tensorflow_datasets.core.DatasetBuilder:
    import_tensorflow()
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError("pip install tensorflow-datasets to read its data sets.") from error
    data_dir = Path(data_dir or Path.home() / "tensorflow_datasets").expanduser()
    folder, _, version = name.partition(":")
    versions = [path.parent for path in (data_dir / folder).glob("*/dataset_info.json")]
    chosen = [path for path in versions if version in ("", path.name)]
    if not chosen:
        found = ", ".join(path.name for path in versions) or "nothing"
        raise DataError(
            f"{name} is not prepared in {data_dir} (found {found}); prepare it with\n"
            f"  tfds build {name} --data_dir {data_dir}"
        )
    newest = max(chosen, key=lambda path: [int(part) for part in path.name.split(".")])
    builder = tensorflow_datasets.builder_from_directory(str(newest))
    missing = {"image", "image/filename", "objects", "labels", "labels_no_difficult"}
    missing -= set(builder.info.features)
    if missing:
        raise DataError(f"{newest}: is not like VOC, it lacks {', '.join(sorted(missing))}.")
    return builder


def _class_names(builder: tensorflow_datasets.core.DatasetBuilder) -> tuple[str, ...]:
    return tuple(builder.info.features["labels"].feature.names)


def _examples(
    builder: tensorflow_datasets.core.DatasetBuilder, split: str, fields: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield examples with the encoded image, the file name, and these fields only."""
    from tensorflow_datasets import as_numpy, decode

    known = builder.info.splits
    if split not in known:
        split = _SPLITS.get(split, split)
    wanted = {field: True for field in ("image", "image/filename", *fields)}
    decoders = decode.PartialDecoding(wanted, decoders={"image": decode.SkipDecoding()})
    try:
        examples = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{builder.info.full_name}: cannot read split {split!r}; it has {', '.join(known)}."
        ) from error
    return iter(as_numpy(examples))


def _image(example: dict[str, Any]) -> tuple[str, bytes]:
    return Path(example["image/filename"].decode()).stem, example["image"]


def _boxes(objects: dict[str, Any], size: tuple[int, int], counts: Counter) -> BoxAnnotations:
    height, width = size
    y1, x1, y2, x2 = np.moveaxis(np.reshape(objects["bbox"], (-1, 4)).astype(np.float64), 1, 0)
    corners = np.stack([x1 * width - 1, y1 * height - 1, x2 * width, y2 * height], axis=1)
    # Edges were whole pixels before they were divided in float32.
    whole = np.round(corners)
    corners = np.where(np.abs(corners - whole) < 0.01, whole, corners)
    inside = clip_boxes(corners, height, width)
    keep = box_area(inside) > 0
    counts["dropped"] += int((~keep).sum())
    counts["clipped"] += int((inside != corners)[keep].any(axis=1).sum())
    return BoxAnnotations.from_lists(
        inside[keep], objects["label"][keep], objects["is_difficult"][keep]
    )
