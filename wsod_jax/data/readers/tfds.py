"""Reader of tensorflow-datasets' `voc/2007` and `voc/2012`, prepared with random access. Never downloads."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from wsod_jax.data.images import image_size
from wsod_jax.data.readers.reader import BoxReader, LeftOut
from wsod_jax.data.readers.voc import DifficultRule, difficult_label
from wsod_jax.data.records import AnnotatedBoxes, BoxAnnotations, ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.ops.boxes import box_area, clip_boxes
from wsod_jax.options import Mark

if TYPE_CHECKING:
    import tensorflow_datasets

_RANDOM_ACCESS = ("array_record", "parquet")  # formats of files
_SPLITS = {"trainval": "train+validation", "val": "validation"}  # VOC's names for them


@dataclass(frozen=True, kw_only=True)
class Tfds(BoxReader):
    """A prepared data set in the form of tensorflow-datasets' VOC.

    Attributes:
      name: "voc/2007" or "voc/2012", with or without a version.
      data_dir: folder of the prepared data; ~/tensorflow_datasets by default.
      difficult: the label of a class if an image has only difficult objects of it, as in `Voc`.
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
        """Read a split's images and their image-level labels; encoded images are read again when they are needed.

        Args:
          split: "train", "val", "trainval", "test", or any split expression of tensorflow-datasets.

        Returns:
          The images; ids are the file names without suffix, as in the VOC layout.

        Raises:
          DataError: if the data set is missing, has no random access or is not like VOC, or the split is unknown.
          ConfigError: if tensorflow-datasets is not installed.
        """
        if_difficult = difficult_label(self.difficult)
        builder = _prepared(self.name, self.data_dir)
        class_names = _class_names(builder)
        examples, records, counts = _examples(builder, split), [], {}
        left_out = LeftOut(self.on_bad)
        for index, image_id, size, example in _readable(examples, left_out):
            labels = np.zeros(len(class_names), int)
            labels[example["labels"]] = if_difficult
            labels[example["labels_no_difficult"]] = 1
            source = functools.partial(_encoded, examples, index)
            records.append(ImageRecord(image_id, source, *size, tuple(labels.tolist())))
        name, missing = f"{self.name} {split}", tuple(left_out.ids)
        left_out.finish(name, len(records), counts)
        return ImageSet(name, class_names, tuple(records), counts, missing=missing)

    def annotated_boxes(self, split: str) -> AnnotatedBoxes:
        """Read the boxes of a split, for evaluation.

        The data set has VOC's 1-based inclusive edges divided by the image's size; they become continuous edges in
        pixels, as in `Voc.annotated_boxes`.

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
        for _, image_id, size, example in _readable(_examples(builder, split), left_out):
            boxes[image_id] = _boxes(example["objects"], size, counts)
        left_out.finish(f"ground truth of {self.name} {split}", len(boxes), counts)
        return AnnotatedBoxes(_class_names(builder), boxes, dict(counts))


def _prepared(name: str, data_dir: str | Path | None) -> tensorflow_datasets.core.DatasetBuilder:
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
            f"{name} is not prepared in {data_dir} (found {found}). {_how_to_prepare(name, data_dir)}"
        )
    newest = max(chosen, key=lambda path: [int(part) for part in path.name.split(".")])
    builder = tensorflow_datasets.builder_from_directory(str(newest))
    missing = {"image", "image/filename", "objects", "labels", "labels_no_difficult"}
    missing -= set(builder.info.features)
    if missing:
        raise DataError(f"{newest}: is not like VOC, it lacks {', '.join(sorted(missing))}.")
    file_format = builder.info.file_format.value
    if file_format not in _RANDOM_ACCESS:
        raise DataError(
            f"{newest} is prepared as {file_format}, whose images cannot be read one by one; allowed are "
            f"{' and '.join(_RANDOM_ACCESS)}. {_how_to_prepare(name, Path('ANOTHER_FOLDER'))}"
        )
    return builder


def _how_to_prepare(name: str, data_dir: Path) -> str:
    call = f"t.builder({name!r}, data_dir={str(data_dir)!r}, file_format={_RANDOM_ACCESS[0]!r})"
    return (
        "Prepare it, which downloads it, with\n"
        f'  python -c "import tensorflow_datasets as t; {call}.download_and_prepare()"'
    )


def _class_names(builder: tensorflow_datasets.core.DatasetBuilder) -> tuple[str, ...]:
    return tuple(builder.info.features["labels"].feature.names)


def _examples(
    builder: tensorflow_datasets.core.DatasetBuilder, split: str
) -> Sequence[dict[str, Any]]:
    """Return the examples, each read when it is needed, with the encoded image."""
    from tensorflow_datasets import decode

    known = builder.info.splits
    if split not in known:
        split = _SPLITS.get(split, split)
    try:
        return builder.as_data_source(split=split, decoders={"image": decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{builder.info.full_name}: cannot read split {split!r}; it has {', '.join(known)}."
        ) from error


def _encoded(examples: Sequence[dict[str, Any]], index: int) -> bytes:
    return examples[index]["image"]


def _readable(
    examples: Sequence[dict[str, Any]], left_out: LeftOut
) -> Iterator[tuple[int, str, tuple[int, int], dict[str, Any]]]:
    """Yield the position, id, (height, width) and example of each image whose size can be read."""
    for index, example in enumerate(examples):
        image_id = Path(example["image/filename"].decode()).stem
        try:
            size = image_size(example["image"], name=image_id)
        except DataError as error:
            left_out.add(image_id, error)
        else:
            yield index, image_id, size, example


def _boxes(objects: dict[str, Any], size: tuple[int, int], counts: Counter) -> BoxAnnotations:
    height, width = size
    y1, x1, y2, x2 = np.reshape(np.asarray(objects["bbox"], np.float64), (-1, 4)).T
    corners = np.stack([x1 * width - 1, y1 * height - 1, x2 * width, y2 * height], axis=1)
    # Edges were whole pixels before they were divided in float32.
    whole = np.round(corners)
    corners = np.where(np.abs(corners - whole) < 0.01, whole, corners)
    inside = clip_boxes(corners, height, width)
    keep = box_area(inside) > 0
    counts["dropped"] += int((~keep).sum())
    counts["clipped"] += int((inside != corners)[keep].any(axis=1).sum())
    return BoxAnnotations.from_lists(
        inside[keep],
        np.asarray(objects["label"], int)[keep],
        np.asarray(objects["is_difficult"], bool)[keep],
    )
