"""Evaluation of a detector, or of a file of predictions: passes over splits, results, evaluators."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.config import EvalOptions
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.reader import Reader
from wsod_jax.data.records import BoxAnnotations, GroundTruth, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.evaluators import (
    Annotation,
    BoxAp,
    CocoAp,
    CorLoc,
    Evaluator,
    MaskAp,
    PseudoBoxes,
    evaluation_labels,
)
from wsod_jax.evaluation.image_evaluators import Classification, Energy, Ilsvrc, MeanIou, Pointing
from wsod_jax.evaluation.metrics.tables import TruthTable
from wsod_jax.evaluation.report import Evaluation
from wsod_jax.evaluation.result_log import ResultLog
from wsod_jax.predictor import Predictor
from wsod_jax.types import Batch, ImageResult

logger = logging.getLogger(__name__)

# Measured of whatever has them; the others where they are named.
USUAL = ("boxes", "classification", "pointing", "energy", "ilsvrc", "masks", "miou")
Progress = Callable[[Iterable[Batch]], Iterable[Batch]]


@dataclasses.dataclass(frozen=True)
class AnnotatedImages:
    """A split and what is known of it.

    Attributes:
      images: the images that can be predicted, with their labels.
      objects: the objects of every one of them, then those of the split's images that are missing; `None` where the
        reader knows no boxes.
      instances: image id -> reads its masks; `label_maps`: its label map. Empty where the reader has none.
    """

    images: ImageSet
    objects: tuple[BoxAnnotations, ...] | None = None
    instances: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    label_maps: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(
        cls, reader: Reader, split: str, reads: frozenset[str] = frozenset({"boxes"})
    ) -> AnnotatedImages:
        """Read a split; masks and label maps only if `reads` holds "masks" and "semantic".

        Boxes that cannot be read are an error if `reads` holds what they measure: "boxes", "maps" or "masks". Else
        they are logged and unknown, and labels count as training has them.
        """
        images, objects = reader.images(split), None
        if reader.has_boxes and not images.counts.get("no_annotation"):
            try:
                objects = cls.known_objects(images, reader.ground_truth(split))
            except DataError as error:
                if reads & {"boxes", "maps", "masks"}:
                    raise
                logger.warning("%s: the objects are not known; %s", images.name, error)
        has_masks = "masks" in reads and reader.has_instances
        has_maps = "semantic" in reads and reader.has_label_maps
        return cls(
            images,
            objects,
            reader.instances(split) if has_masks else {},
            reader.label_maps(split) if has_maps else {},
        )

    @staticmethod
    def known_objects(images: ImageSet, truth: GroundTruth) -> tuple[BoxAnnotations, ...]:
        """Return the objects of the images, and of the missing ones of which any are known."""
        missing = [image_id for image_id in images.missing if image_id in truth.boxes]
        return tuple(truth.select([*images.image_ids, *missing]).boxes.values())

    @property
    def has_boxes(self) -> bool:
        """Whether the objects are known."""
        return self.objects is not None

    @functools.cached_property
    def truth(self) -> TruthTable:
        """The objects of the images, those of missing ones left out."""
        objects = self.objects[: len(self.images)]
        return TruthTable.from_annotations(objects, num_classes=len(self.images.class_names))

    @property
    def sizes(self) -> np.ndarray:
        """[n, 2] (height, width) of the images in pixels."""
        return np.array([(record.height, record.width) for record in self.images.records])

    @functools.cached_property
    def query(self) -> np.ndarray:
        """[n, c] bool, the classes that images are labeled with or contain."""
        labeled = self.images.labels == 1
        return labeled | self.truth.present() if self.has_boxes else labeled

    def __len__(self) -> int:
        """Images that count, the missing ones included."""
        return len(self.objects) if self.has_boxes else len(self.images)

    def annotation(self, index: int) -> Annotation:
        """Return what is known of an image; of a missing one its objects alone."""
        objects = self.objects[index] if self.has_boxes else None
        if index >= len(self.images):
            return Annotation(
                evaluation_labels(np.zeros(len(self.images.class_names)), objects), objects
            )
        record = self.images.records[index]
        return Annotation(
            evaluation_labels(record.labels, objects),
            objects,
            self.instances.get(record.image_id),
            self.label_maps.get(record.image_id),
        )

    def known(self) -> frozenset[str]:
        """Return what evaluators can read here."""
        found = {"labels"} if (self.images.label_vectors[0] >= 0).any() or self.has_boxes else set()
        found |= {"boxes"} if self.has_boxes else set()
        found |= {"masks"} if self.instances else set()
        return frozenset(found | ({"semantic"} if self.label_maps else set()))


def truth_table(images: ImageSet, truth: GroundTruth) -> TruthTable:
    """Return the objects of a set as metrics read them."""
    selected = truth.select(images.image_ids)
    return TruthTable.from_annotations(selected.boxes.values(), num_classes=len(truth.class_names))


def all_evaluators(
    settings: EvalOptions, num_classes: int, blacklist: Sequence[int] = ()
) -> dict[str, Evaluator]:
    """Return every evaluator by name, as the settings have it."""
    return {
        "boxes": BoxAp(num_classes, iou_thrs=settings.iou_thrs, ap_mode=settings.ap),
        "coco": CocoAp(num_classes),
        "corloc": CorLoc(num_classes, include_difficult=settings.corloc_difficult),
        "masks": MaskAp(num_classes, iou_thrs=settings.masks.iou_thrs),
        "coco_masks": CocoAp(num_classes, "masks"),
        "miou": MeanIou(num_classes),
        "classification": Classification(settings.image_ap or settings.ap),
        "pointing": Pointing(
            num_classes, settings.maps.pointing_px, settings.maps.prediction_px, settings.ap
        ),
        "energy": Energy(),
        "ilsvrc": Ilsvrc(num_classes, blacklist),
        "pseudo": PseudoBoxes(num_classes),
    }


def choose_evaluators(
    settings: EvalOptions,
    known: Mapping[str, Evaluator],
    outputs: frozenset[str],
    data: AnnotatedImages,
    *,
    extra: Sequence[str] = (),
    is_single_label: bool = False,
) -> tuple[dict[str, Evaluator], list[str]]:
    """Return the evaluators of a pass by name, and sentences about those that the annotations do not allow.

    Args:
      settings: of the pass.
      known: every evaluator by name.
      outputs: what is predicted.
      data: what it is compared with.
      extra: names of further evaluators, measured if what is predicted allows it.
      is_single_label: one class per image is predicted.

    Raises:
      ConfigError: an evaluator is named that needs another output.
    """
    names, notes, chosen = settings.evaluators, [], {}
    if names is None:
        usual = [name for name in USUAL if name != "ilsvrc" or is_single_label]
        names = [name for name in (*usual, *extra) if known[name].needs & outputs]
    for name in names:
        evaluator = known[name]
        if not evaluator.needs & outputs:
            raise ConfigError(
                f"evaluator {name!r} needs {' or '.join(sorted(evaluator.needs))}, but what is predicted are "
                f"{', '.join(sorted(outputs))}; take it out of eval.evaluators"
            )
        missing = evaluator.reads - data.known()
        if not missing:
            chosen[name] = evaluator
        elif name in (settings.evaluators or ("boxes", "pointing", "masks", "miou")):
            notes.append(
                f"{data.images.name} has no {' or '.join(sorted(missing))} to compare with: {name} not measured"
            )
    return chosen, notes


def run_pass(
    predictor: Predictor,
    data: AnnotatedImages,
    proposals: ProposalSet | None,
    log: ResultLog,
    progress: Progress = iter,
    query: np.ndarray | None = None,
) -> dict[str, int]:
    """Predict the images that a log lacks, and append them to it; `query` as in `infer`, `None` is the split's.

    Returns:
      What the input met, by name; see `data.assembling.COUNTS`.
    """
    todo = [i for i in range(len(data.images)) if i not in log]
    query = data.query if query is None else query
    before, totals = log.counts, {}  # totals: image -> what was met until its last view was read
    views = predictor.views(data.images.select(todo), proposals)

    def met() -> dict[str, int]:
        return {name: before.get(name, 0) + count for name, count in views.counts.items()}

    def noted() -> Iterator[Batch]:
        for batch in progress(views):
            totals.update(dict.fromkeys(batch.image_index[batch.image_mask].tolist(), met()))
            yield batch

    for result in predictor.results(noted(), query[todo]):
        index = result.image_index
        log.add(dataclasses.replace(result, image_index=todo[index]), totals.pop(index))
    return met()


def classes_read(log: ResultLog, data: AnnotatedImages) -> np.ndarray:
    """Return [n, c] bool, the classes whose maps a log holds, and those of the split's query."""
    query = data.query.copy()
    for result in log:
        query[result.image_index, result.maps.classes] = True
    return query


def in_order(results: Iterable[ImageResult], data: AnnotatedImages) -> Iterator[ImageResult]:
    """Yield a result for every image that counts, without any output where there is none; `results` are ascending."""
    sizes, expected = data.sizes, 0
    for result in results:
        yield from (_empty(i, sizes) for i in range(expected, result.image_index))
        yield result
        expected = result.image_index + 1
    yield from (_empty(i, sizes) for i in range(expected, len(data)))


def _empty(index: int, sizes: np.ndarray) -> ImageResult:
    return ImageResult(index, tuple(sizes[index].tolist()) if index < len(sizes) else (1, 1))


def score(
    results: Iterable[ImageResult], data: AnnotatedImages, evaluators: Mapping[str, Evaluator]
) -> dict[str, Evaluation]:
    """Feed evaluators with results, ascending by image, and compute their numbers."""
    for result in in_order(results, data):
        annotation = data.annotation(result.image_index)
        for evaluator in evaluators.values():
            evaluator.update(result, annotation)
    return {name: evaluator.compute() for name, evaluator in evaluators.items()}


@dataclasses.dataclass(frozen=True)
class PassOutcome:
    """What a pass found.

    Attributes:
      name: of the pass, "test" for the first.
      settings: of it.
      data: the split.
      evaluators: by name, and `evaluations`: their numbers.
      outputs: what was predicted.
      results: of the whole set, ascending by image; iterated as often as needed.
      left_out: what the numbers do not see, in sentences; `notes`: further ones.
      seconds_per_image: of what was predicted now.
      logs: where finished images are kept.
    """

    name: str
    settings: EvalOptions
    data: AnnotatedImages
    evaluators: Mapping[str, Evaluator]
    evaluations: Mapping[str, Evaluation]
    outputs: frozenset[str]
    results: Iterable[ImageResult]
    left_out: list[str]
    notes: list[str]
    seconds_per_image: float = 0.0
    logs: Sequence[ResultLog] = ()

    @property
    def summary(self) -> dict[str, float]:
        """Every number by name."""
        parts = [evaluation.summary for evaluation in self.evaluations.values()]
        return {name: value for part in parts for name, value in part.items()}

    def discard(self) -> None:
        """Delete what was kept of finished images."""
        for log in self.logs:
            log.remove()


class Selected:
    """Results of a log as they count: after the data set's score thresholds; iterated as often as needed."""

    def __init__(self, predictor: Predictor, log: ResultLog, num_images: int, others: Others):
        self._predictor, self._log, self._num_images = predictor, log, num_images
        self._others = others

    def __iter__(self) -> Iterator[ImageResult]:
        for result in self._predictor.selected(self._log, self._num_images):
            maps = [
                log[result.image_index].maps for log in self._others if result.image_index in log
            ]
            if maps:
                joined = dataclasses.replace(result.maps, others=tuple(maps))
                boxes, scores, classes = joined.detections()
                result = dataclasses.replace(
                    result, maps=joined, boxes=boxes, scores=scores, classes=classes
                )
            yield result


Others = Sequence[ResultLog]  # logs of further detectors, whose components join those of the first


def evaluate_pass(
    name: str,
    predictors: Sequence[Predictor],
    data: AnnotatedImages,
    proposals: ProposalSet | None,
    folder: Path,
    *,
    extra: Sequence[str] = (),
    blacklist: Sequence[int] = (),
    progress: Progress = iter,
) -> PassOutcome:
    """Predict a split and measure what was predicted; a further pass that measures nothing predicts nothing.

    Finished images are kept in `folder` until `PassOutcome` is done with: the same call goes on with the others.

    Args:
      name: of the pass.
      predictors: the detector with the settings of the pass, and others whose maps' boxes join its own.
      data: the split.
      proposals: of its images, for methods that score some.
      folder: where finished images are kept.
      extra: names of evaluators besides the usual ones.
      blacklist: positions of images that ILSVRC's errors leave out.
      progress: wraps the iterable of batches, to show how far it is.
    """
    predictor = predictors[0]
    method, settings = predictor.method, predictor.settings
    known = all_evaluators(settings, len(data.images.class_names), blacklist)
    chosen, notes = choose_evaluators(
        settings,
        known,
        method.outputs,
        data,
        extra=extra,
        is_single_label=method.single_label,
    )
    started, todo, counts, logs = time.perf_counter(), 0, {}, []
    for number, one in enumerate(predictors if chosen or name == "test" else ()):
        log = ResultLog(
            folder / f".{name}_{number}.results",
            identity(one, data.images),
            settings.decoding(is_single_label=method.single_label).reading,
        )
        logs.append(log)
        todo = max(todo, len(data.images) - len(log))
        query = classes_read(logs[0], data) if number else data.query
        counts = run_pass(one, data, proposals, log, progress, query) | counts
    seconds = (time.perf_counter() - started) / max(todo, 1)
    results = Selected(predictor, logs[0], len(data.images), logs[1:]) if logs else ()
    evaluations = score(results, data, chosen)
    unread = [i for i in range(len(data.images)) if i not in logs[0]] if logs else []
    return PassOutcome(
        name,
        settings,
        data,
        chosen,
        evaluations,
        method.outputs,
        results,
        left_out_sentences(data, unread),
        [*notes, *_met(data.images, counts)],
        seconds,
        logs,
    )


def score_file(
    results: Sequence[ImageResult],
    data: AnnotatedImages,
    settings: EvalOptions,
    extra: Sequence[str] = (),
    only_extra: bool = False,
) -> PassOutcome:
    """Measure results that a file tells.

    Args:
      results: one of each image, in order.
      data: the split.
      settings: thresholds and rules, and the evaluators, the usual ones where it names none.
      extra: names of evaluators besides the usual ones, or, with `only_extra`, in place of all others.
      only_extra: see there.
    """
    has_masks = any(result.masks is not None for result in results)
    outputs = frozenset({"boxes", "masks"} if has_masks else {"boxes"})
    if only_extra:
        settings = dataclasses.replace(settings, evaluators=tuple(extra))
    known = all_evaluators(settings, len(data.images.class_names))
    chosen, notes = choose_evaluators(settings, known, outputs, data, extra=extra)
    evaluations = score(results, data, chosen)
    left_out, notes = left_out_sentences(data, ()), [*notes, *_met(data.images, {})]
    return PassOutcome(
        "test", settings, data, chosen, evaluations, outputs, results, left_out, notes
    )


def identity(predictor: Predictor, images: ImageSet) -> dict[str, Any]:
    """Return what results are a function of, but for the pixels of the images."""
    settings = dataclasses.asdict(predictor.settings)
    for name in (
        "evaluators",
        "ap",
        "image_ap",
        "iou_thrs",
        "corloc_difficult",
        "passes",
        "loader",
    ):
        del settings[name]
    config, proposals = predictor.config.to_dict(), predictor.config.proposals
    stamp = None
    if proposals is not None and Path(proposals.path).is_file():
        status = Path(proposals.path).stat()
        stamp = [status.st_size, status.st_mtime_ns]
    return {
        "step": predictor.metadata.get("step"),
        "weights": predictor.fingerprint(),
        "config": {key: config[key] for key in ("method", "backbone", "proposals")},
        "proposals": stamp,
        "settings": repr(settings),
        "images": [images.name, *images.image_ids],
        "labels": images.labels.sum(axis=0).tolist(),
    }


def _met(images: ImageSet, counts: Mapping[str, int]) -> list[str]:
    """Say what the input met in a set: images shrunk or unreadable, proposals merged or dropped."""
    met = ", ".join(f"{name} {n}" for name, n in {**images.counts, **counts}.items() if n)
    per_view = ", each image counted once per view" if counts else ""
    return [f"input of {images.name}{per_view}: {met}"] if met else []


def left_out_sentences(data: AnnotatedImages, unread: Sequence[int]) -> list[str]:
    """Say which images of a split have no result, to stand before the numbers."""
    found = []
    for ids, fault in (
        ([data.images.image_ids[i] for i in unread], "could not be read"),
        (data.images.missing, "are missing or broken"),
    ):
        if ids:
            names = ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")
            total = len(data.images) + len(data.images.missing)
            found.append(
                f"{len(ids)} of {total} images of {data.images.name} {fault} ({names}): their objects count as "
                "missed, and image mAP leaves them out"
            )
    return found
