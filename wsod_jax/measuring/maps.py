"""Evaluation of methods that localise without proposals: points, boxes and energy, all read off maps."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsod_jax.data.reader import Reader
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import ConfigError
from wsod_jax.evaluation.combining import combine_boxes
from wsod_jax.evaluation.map_pictures import picture_maps
from wsod_jax.evaluation.maps import Located
from wsod_jax.evaluation.metrics.classification import classification_ap
from wsod_jax.evaluation.metrics.corloc import CorLocMetrics, corloc, corloc_any, top_boxes
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics, object_energy
from wsod_jax.evaluation.metrics.pointing import (
    difficult_subset,
    pointing_accuracy,
    pointing_with_prediction,
)
from wsod_jax.evaluation.metrics.tables import DetectionTable, TruthTable
from wsod_jax.measuring.findings import Findings, bar, known_objects
from wsod_jax.predictor import Predictor, check_classes
from wsod_jax.runs import load_run

OFF_THE_IMAGE = -1e9  # the point of an image that could not be read: a miss


@dataclasses.dataclass(frozen=True)
class MapSplit:
    """A split and what is known of it.

    Attributes:
      images: the images with their labels.
      truth: their objects; `None` where they are not known.
    """

    images: ImageSet
    truth: TruthTable | None

    @classmethod
    def read(cls, reader: Reader, split: str) -> MapSplit:
        """Read a split."""
        images = reader.images(split)
        return cls(images, known_objects(reader, images, split))

    @property
    def sizes(self) -> np.ndarray:
        """[n, 2] (height, width) of the images in pixels."""
        return np.array([(record.height, record.width) for record in self.images.records])

    @property
    def wanted(self) -> np.ndarray:
        """[n, c] bool, the classes that images are labelled with or contain."""
        labelled = self.images.labels == 1
        return labelled if self.truth is None else labelled | self.truth.present()

    def locate(self, predictor: Predictor, purpose: str, keep_responses: int = 0) -> Located:
        """Read the maps of all images."""
        return predictor.locate(self.images, self.wanted, purpose, bar, keep_responses)


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """What maps are worth on a test split with annotated objects.

    Attributes:
      image_ap: [c] average precision of the class scores.
      pointing: [c] share of images whose strongest response lies on an object of the class.
      pointing_difficult: [c] the same where objects are small and not alone.
      pointing_ap: [c] average precision of predicting a class and pointing at it.
      energy: share of the proposal map that lies on objects.
    """

    image_ap: np.ndarray
    pointing: np.ndarray
    pointing_difficult: np.ndarray
    pointing_ap: np.ndarray
    energy: EnergyMetrics

    @classmethod
    def of(cls, located: Located, split: MapSplit, predictor: Predictor) -> SplitMetrics:
        """Measure what was located in a split with annotated objects."""
        settings, ap_mode = predictor.settings.maps, predictor.settings.ap
        seen, truth = located.predicted, split.truth
        points = np.where(seen[:, None, None], located.points, OFF_THE_IMAGE)
        scores = np.where(seen[:, None], located.image_scores, 0.0)
        difficult = difficult_subset(truth, split.sizes)
        pointing, pointing_difficult = (
            pointing_accuracy(points, truth, tolerance_px=settings.pointing_px, subset=subset)
            for subset in (None, difficult)
        )
        return cls(
            image_ap=classification_ap(
                located.image_scores[seen], split.images.labels[seen], ap_mode=ap_mode
            ),
            pointing=pointing.accuracy,
            pointing_difficult=pointing_difficult.accuracy,
            pointing_ap=pointing_with_prediction(
                points, scores, truth, tolerance_px=settings.prediction_px, ap_mode=ap_mode
            ),
            energy=EnergyMetrics(map_energies(located, split, predictor)),
        )

    @property
    def shares(self) -> dict[str, np.ndarray]:
        """Shares per class by their names in reports."""
        return {
            "image mAP": self.image_ap,
            "pointing": self.pointing,
            "pointing difficult": self.pointing_difficult,
            "pointing AP": self.pointing_ap,
        }


def map_energies(located: Located, split: MapSplit, predictor: Predictor) -> np.ndarray:
    """Return [n] the Object Energy of every image's proposal map; NaN for images not read or without objects."""
    energies = np.full(len(split.images), np.nan)
    reading = predictor.settings.maps.reading
    for i in np.flatnonzero(located.predicted):
        height, width = (int(side) for side in split.sizes[i])
        energy_map = reading.objectness(located.maps[i], (height, width))
        energies[i] = object_energy(energy_map, split.truth.of_image(i).boxes)
    return energies


def open_other(run: Path, images: ImageSet, changes: Sequence[str]) -> Predictor:
    """Return the detector of another run, whose boxes are to join those of the one evaluated.

    Args:
      run: its workdir, or one of its checkpoints.
      images: the test set.
      changes: to where its files lie.
    Raises:
      ConfigError: its method makes no maps.
      DataError: it was trained for other classes.
    """
    other = load_run(run, changes=changes)
    if "maps" not in other.method.outputs:
        raise ConfigError(
            f"--together_with {run}: method {other.config.method.name!r} makes no maps; only runs of "
            "methods with maps, such as spn, can be joined"
        )
    check_classes(images, other.class_names)
    return other


def measure_corloc(
    located: Sequence[Located], truth: TruthTable, predictor: Predictor
) -> tuple[CorLocMetrics, CorLocMetrics]:
    """Return CorLoc of one box per class, and of any of several.

    The one box is the tightest around all foreground of the first detector; the several are the components of all
    detectors' and views' foreground.
    """
    difficult = predictor.settings.corloc_difficult
    single = corloc(*top_boxes(located[0].tightest), truth, include_difficult=difficult)
    boxes = combined_boxes(located, predictor)
    return single, corloc_any(boxes, truth, include_difficult=difficult)


def combined_boxes(located: Sequence[Located], predictor: Predictor) -> DetectionTable:
    """Return the components' boxes of all detectors; where there are several views, after filtering and NMS."""
    settings = predictor.settings.maps
    several = len(located) > 1 or (
        predictor.settings.merge == "union" and predictor.settings.num_views > 1
    )
    if not several:
        return located[0].components
    return combine_boxes(
        [one.components for one in located],
        nms_thr=settings.nms_thr,
        min_side_px=settings.min_side_px,
    )


def predicted_boxes(located: Sequence[Located], predictor: Predictor) -> DetectionTable:
    """Return the boxes of the predicted classes, as `eval.maps.boxes` says."""
    if predictor.settings.maps.boxes == "components":
        return located[0].of_claimed(combined_boxes(located, predictor))
    return located[0].of_claimed(located[0].tightest)


def write_points(path: Path, images: ImageSet, located: Located, class_names) -> Path:
    """Write the points of all examined classes: image, class, x, y, the class's score, whether it is predicted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", "x", "y", "score", "predicted"])
        for i, c in zip(*np.nonzero(located.examined), strict=True):
            x, y = located.points[i, c]
            score, claimed = located.image_scores[i, c], int(located.claimed[i, c])
            row = [images.image_ids[i], class_names[c], f"{x:.1f}", f"{y:.1f}", f"{score:.6f}"]
            writer.writerow([*row, claimed])
    return path


def measure_maps(
    findings: Findings,
    predictor: Predictor,
    split: MapSplit,
    located: Located,
    *,
    folder: Path,
    num_pictures: int,
) -> SplitMetrics | None:
    """Add what a test split's maps are worth to the findings, and draw some of them."""
    metrics = None
    if split.truth is None:
        findings.note(
            f"{split.images.name} has no boxes to compare with: only classes are measured"
        )
        seen = located.predicted
        labels = split.images.labels[seen]
        if (labels >= 0).any():
            findings.shares["image mAP"] = classification_ap(
                located.image_scores[seen], labels, ap_mode=predictor.settings.ap
            )
    else:
        metrics = SplitMetrics.of(located, split, predictor)
        findings.shares |= metrics.shares
        findings.scalars["energy"] = metrics.energy.mean
        if metrics.energy.num_left_out:
            findings.note(
                f"energy leaves out {metrics.energy.num_left_out} images without objects, or not read"
            )
    findings.pictures += picture_maps(
        folder,
        [record.load for record in split.images.records[:num_pictures]],
        located,
        predictor.settings.maps.reading,
        split.truth,
        image_ids=split.images.image_ids[:num_pictures],
        class_names=predictor.class_names,
    )
    return metrics


def measure_training_split(
    findings: Findings,
    predictor: Predictor,
    split: MapSplit | None,
    others: Sequence[Predictor] = (),
) -> tuple[CorLocMetrics, CorLocMetrics] | None:
    """Add CorLoc on a split to the findings, and return it, of one box and of any.

    Args:
      findings: added to.
      predictor: the detector.
      split: `None` for none.
      others: detectors whose boxes join those of `predictor` where any box may hit.
    """
    if split is None:
        return None
    if split.truth is None:
        findings.note(f"{split.images.name} has no boxes to compare with: CorLoc not measured")
        return None
    located = [split.locate(one, "corloc") for one in (predictor, *others)]
    findings.note_input(split.images, located[0].counts, located[0].predicted)
    single, several = measure_corloc(located, split.truth, predictor)
    findings.parts["corloc"] = single
    findings.shares["CorLoc any"] = several.corloc
    return single, several
