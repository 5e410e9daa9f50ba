"""Evaluation of a detector, or of a file of predictions: passes over splits, and their results."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.evaluation.evaluators import Evaluator
from wsod_jax.evaluation.report import Evaluation
from wsod_jax.evaluation.result_log import ResultLog
from wsod_jax.runs.annotated_images import (
    AnnotatedImages,
    count_notes,
    in_order,
    left_out_sentences,
)
from wsod_jax.runs.evaluator_choice import all_evaluators, choose_evaluators, outputs_with
from wsod_jax.runs.mask_baselines import MaskBaseline, Masked
from wsod_jax.runs.predictor import Predictor
from wsod_jax.types import Batch, ImageResult

# Outputs that a further pass predicts only for evaluators that need them.
COSTLY = frozenset({"masks", "semantic"})
Progress = Callable[[Iterable[Batch]], Iterable[Batch]]


def run_pass(
    predictor: Predictor,
    data: AnnotatedImages,
    proposals: ProposalSet | None,
    log: ResultLog,
    progress: Progress = iter,
    query: np.ndarray | None = None,
    want: frozenset[str] | None = None,
) -> dict[str, int]:
    """Predict the images that a log lacks, and append them to it.

    Args:
      predictor: what predicts.
      data: the images; of labels and objects only `query` makes use.
      proposals: of the images, for methods that score some.
      log: of results of the same images.
      progress: wraps the iterable of batches, to show how far it is.
      query: [n, c] classes whose maps are read besides the predicted ones; `None` for those of the split.
      want: outputs of the method; `None` for all.

    Returns:
      What the input met, by name; see `data.input.assembling.COUNTS`.
    """
    todo = [i for i in range(len(data.images)) if i not in log]
    query = data.query if query is None else query
    before, totals = log.counts, {}  # totals: image -> what was met until its last view was read
    images = data.images.select(todo)
    views = predictor.views(images, proposals, predictor.pooled_cache(images, proposals))

    def met() -> dict[str, int]:
        return {name: before.get(name, 0) + count for name, count in views.counts.items()}

    def noted() -> Iterator[Batch]:
        for batch in progress(views):
            totals.update(dict.fromkeys(batch.image_index[batch.image_mask].tolist(), met()))
            yield batch

    for result in predictor.results(noted(), query[todo], want):
        index = result.image_index
        log.add(dataclasses.replace(result, image_index=todo[index]), totals.pop(index))
    return met()


def classes_read(log: ResultLog, data: AnnotatedImages) -> np.ndarray:
    """Return [n, c] bool, the classes whose maps a log holds, and those of the split's query."""
    query = data.query.copy()
    for result in log:
        query[result.image_index, result.maps.classes] = True
    return query


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
      want: the outputs asked for, `None` where a file was read.
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
    want: frozenset[str] | None = None

    @property
    def summary(self) -> dict[str, float]:
        """Every number by name."""
        parts = [evaluation.summary for evaluation in self.evaluations.values()]
        return {name: value for part in parts for name, value in part.items()}

    def discard(self) -> None:
        """Delete what was kept of finished images."""
        for log in self.logs:
            log.remove()


class Joined:
    """Results whose maps are joined by those of further detectors; iterated as often as needed."""

    def __init__(self, results: Iterable[ImageResult], others: Sequence[ResultLog]):
        """Wrap results; `others` are logs of the same images."""
        self._results, self._others = results, others

    def __iter__(self) -> Iterator[ImageResult]:
        for result in self._results:
            index = result.image_index
            maps = tuple(log[index].maps for log in self._others if index in log)
            if maps:
                joined = dataclasses.replace(result.maps, others=maps)
                columns = zip(("boxes", "scores", "classes"), joined.detections(), strict=True)
                result = dataclasses.replace(result, maps=joined, **dict(columns))
            yield result


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
    masks: MaskBaseline | None = None,
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
      masks: how masks are made of boxes, in place of those that the method predicts; `None` to take those.
    """
    predictor = predictors[0]
    method, settings = predictor.method, predictor.settings
    outputs = outputs_with(method.outputs, masks)
    known = all_evaluators(settings, len(data.images.class_names), blacklist)
    chosen, notes = choose_evaluators(
        settings,
        known,
        outputs,
        data,
        extra=extra,
        is_single_label=method.single_label,
    )
    want, needed = method.outputs, frozenset().union(*(one.needs for one in chosen.values()))
    if name != "test":
        # What is cheap is wanted all the same, or each pass would compile programs of its own.
        want -= COSTLY - needed
    replaces_masks = masks is not None and (name == "test" or "masks" in needed)
    if replaces_masks:
        masks.check(data.images)
        want -= {"masks"}
    started, todo, counts, logs = time.perf_counter(), 0, {}, []
    for number, one in enumerate(predictors if chosen or name == "test" else ()):
        query = classes_read(logs[0], data) if number else data.query
        log = open_log(one, data.images, proposals, folder, f"{name}_{number}", query, want)
        logs.append(log)
        if len(log):
            print(f"{data.images.name}: {len(log)} of {len(data.images)} images are finished")
        todo = max(todo, len(data.images) - len(log))
        counts = run_pass(one, data, proposals, log, progress, query, want) | counts
    seconds = (time.perf_counter() - started) / todo if todo else math.nan
    results = ()
    if logs:
        results = Joined(predictor.selected(logs[0], len(data.images)), logs[1:])
        if replaces_masks:
            results = Masked(results, masks, data.image_ids)
    evaluations = score(results, data, chosen)
    unread = [i for i in range(len(data.images)) if i not in logs[0]] if logs else []
    return PassOutcome(
        name,
        settings,
        data,
        chosen,
        evaluations,
        outputs,
        results,
        left_out_sentences(data, unread),
        [*notes, *count_notes(data, counts)],
        seconds,
        logs,
        want,
    )


def score_file(
    results: Sequence[ImageResult],
    data: AnnotatedImages,
    settings: EvalOptions,
    extra: Sequence[str] = (),
    only_extra: bool = False,
    masks: MaskBaseline | None = None,
) -> PassOutcome:
    """Measure the results of a file.

    Args:
      results: one of each image, in order.
      data: the split.
      settings: thresholds and rules, and the evaluators, the usual ones where it names none.
      extra: names of evaluators besides the usual ones, or, with `only_extra`, in place of all others.
      only_extra: see there.
      masks: how masks are made of boxes, in place of those in the file; `None` to take those.
    """
    if masks is not None:
        masks.check(data.images)
        results = Masked(results, masks, data.image_ids)
    has_masks = masks is not None or any(result.masks is not None for result in results)
    outputs = frozenset({"boxes", "masks"} if has_masks else {"boxes"})
    if only_extra:
        settings = dataclasses.replace(settings, evaluators=tuple(extra))
    known = all_evaluators(settings, len(data.images.class_names))
    chosen, notes = choose_evaluators(settings, known, outputs, data, extra=extra)
    evaluations = score(results, data, chosen)
    left_out, notes = left_out_sentences(data, ()), [*notes, *count_notes(data, {})]
    return PassOutcome(
        "test", settings, data, chosen, evaluations, outputs, results, left_out, notes
    )


def open_log(
    predictor: Predictor,
    images: ImageSet,
    proposals: ProposalSet | None,
    folder: Path,
    name: str,
    query: np.ndarray | None = None,
    want: frozenset[str] | None = None,
) -> ResultLog:
    """Open the log of what a detector predicts of images: a hidden file of a folder.

    Its name holds a checksum of what results are a function of: detector, views, decoding, images, proposals, and the
    arguments `query` and `want` of `run_pass`. Two evaluations with other settings do not share a file.
    """
    settings, config = predictor.settings, predictor.config
    decoding = settings.decoding(is_single_label=predictor.method.single_label)
    arrays = [] if proposals is None else [proposals.boxes, proposals.offsets]
    identity = {
        "step": predictor.metadata.get("step"),
        "weights": predictor.fingerprint(),
        "model": repr((config.method, config.backbone)),
        "rules": repr(predictor.rules),
        "proposals": [zlib.crc32(np.ascontiguousarray(array)) for array in arrays],
        "views": repr(
            (settings.canvases, settings.flips, settings.wants(predictor.method.outputs))
        ),
        "decoding": repr(decoding),
        "want": None if want is None else sorted(want),
        "query": None if query is None else zlib.crc32(np.ascontiguousarray(query)),
        "images": zlib.crc32(repr([source_of(record) for record in images.records]).encode()),
    }
    checksum = zlib.crc32(json.dumps(identity, sort_keys=True).encode())
    return ResultLog(folder / f".{name}_{checksum:08x}.results", identity, decoding.reading)


def source_of(record: ImageRecord) -> list[Any]:
    """Return what tells the image from another of the same name: where it is, its size and time where it is a file."""
    if record.path is None:
        return [record.image_id, record.height, record.width]
    status = record.path.stat()
    return [str(record.path.resolve()), status.st_size, status.st_mtime_ns]


def distinct(outcomes: Sequence[PassOutcome]) -> list[Evaluation]:
    """Return the evaluations of several passes; where names would occur twice, the later pass's name precedes them."""
    found: list[Evaluation] = []
    taken: set[str] = set()
    for outcome in outcomes:
        for evaluation in outcome.evaluations.values():
            names = {*evaluation.summary, *evaluation.shares, *evaluation.counts}
            found.append(evaluation.of_pass(outcome.name) if names & taken else evaluation)
            taken |= {*found[-1].summary, *found[-1].shares, *found[-1].counts}
    return found
