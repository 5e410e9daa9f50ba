"""What every script does with a built configuration: feed training, predict a set, score the predictions."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from wsod_jax import build
from wsod_jax.data.loading import Loading, SkipPixels
from wsod_jax.data.pipeline import TrainStream, ViewStream, train_batches, view_batches
from wsod_jax.data.plan import Order
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import GroundTruth, ImageSet, training_images
from wsod_jax.data.transforms import ProposalRules
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.ilsvrc import ILSVRC_GUESSES
from wsod_jax.evals.inference import MergedImage, infer
from wsod_jax.evals.localization import CorLocMetrics, corloc
from wsod_jax.evals.maps import Located, claims_above, claims_best, locate
from wsod_jax.evals.selection import Results, select
from wsod_jax.evals.tables import DetectionTable, TruthTable
from wsod_jax.evals.voc import DetectionMetrics, evaluate_detections
from wsod_jax.methods.base import Method
from wsod_jax.ops.soft_proposal import Solver
from wsod_jax.train.checkpoint import load_checkpoint
from wsod_jax.types import Batch, Params, Predictions

OF_BOXES = (
    "nms_thr",
    "top_k",
    "score_thr",
    "average_per_image",
)  # test settings that maps do without
Purpose = Literal["map", "corloc"]
Settings = TypeVar("Settings", build.EvalSettings, build.LocalizationSettings)
# Where things lie, not what they are: a run stays the same when its data move.
LOCATIONS = (
    "data.root",
    "data.folder",
    "data.labels_csv",
    "data.data_dir",
    "data.annotations",
    "data.index_path",
    "proposals.path",
    "backbone.weights",
)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A training split: images with labels, and their proposals.

    Attributes:
      image_set: images with at least one positive label.
      proposals: `None` for methods without.
      rules: which proposals are used, `None` likewise.
      settings: how they are batched.
      seed: of order and augmentation.
    """

    image_set: ImageSet
    proposals: ProposalSet | None
    rules: ProposalRules | None
    settings: build.TrainSettings
    seed: int

    @classmethod
    def read(cls, config: ConfigDict) -> TrainingData:
        """Read what a configuration trains on, and check that its labels suit the method."""
        images = training_images(build.images(config, config.data.train_split))
        build.check_labels(config, images)
        return cls(
            images,
            build.proposals(config),
            build.proposal_rules(config),
            build.train_settings(config),
            config.seed,
        )

    @property
    def max_classes(self) -> int:
        """The most positive classes that an image has: what miners size their loops by."""
        return int((self.image_set.label_vectors[0] == 1).sum(axis=1).max())

    def batches(self, start_step: int = 0, skip_pixels: SkipPixels | None = None) -> TrainStream:
        """Return the endless stream of updates from `start_step` on, a list of micro-batches each.

        Images for which `skip_pixels` says so are not decoded: their features are cached.
        """
        return train_batches(
            self.image_set,
            self.proposals,
            canvases=self.settings.canvases,
            order=Order(
                batch_size=self.settings.micro_batch,
                accumulate=self.settings.accumulate,
                flip=self.settings.flip,
                seed=self.seed,
            ),
            rules=self.rules,
            loading=Loading(loader=self.settings.loader, skip_pixels=skip_pixels),
            start_step=start_step,
        )

    def example(self) -> Batch:
        """Return one micro-batch, for its shapes."""
        stream = self.batches()
        first = next(stream)[0]
        stream.close()
        return first

    def fixed_batches(self, count: int) -> list[Batch]:
        """Return the first `count` images at the first scale, unmirrored, one image per batch."""
        if count == 0:
            return []
        canvases = dataclasses.replace(self.settings.canvases, scales=self.settings.scales[:1])
        stream = view_batches(
            self.image_set.select(range(min(count, len(self.image_set)))),
            self.proposals,
            canvases=canvases,
            flips=(False,),
            rules=self.rules,
            loading=Loading(loader="threads"),
        )
        return list(stream)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained detector and the way it is tested.

    Attributes:
      method: what predicts.
      params, extras: its state.
      class_names: c names.
      settings: views, NMS and metrics.
      rules: which proposals are used, `None` for methods without.
      localization: how its maps are read, `None` for methods without.
      predict_step: the method's predict function, jitted; one compilation per canvas.
    """

    method: Method
    params: Params
    extras: dict
    class_names: tuple[str, ...]
    settings: build.EvalSettings
    rules: ProposalRules | None
    localization: build.LocalizationSettings | None
    predict_step: Callable[[Params, dict, Batch], Predictions]

    @classmethod
    def configured(
        cls,
        config: ConfigDict,
        method: Method,
        params: Params,
        extras: dict,
        class_names: tuple[str, ...],
    ) -> Predictor:
        """Return a predictor that tests as a configuration says."""
        settings = build.eval_settings(config)
        if "localization" in config and settings.merge == "sum":
            raise ConfigError(
                'config.eval.merge is "sum", but maps of several views are averaged ("mean") or read one by '
                'one ("union")'
            )
        return cls(
            method,
            params,
            extras,
            class_names,
            settings,
            build.proposal_rules(config),
            build.localization_settings(config),
            predict_step(method),
        )

    def num_compilations(self) -> int:
        """Return how often the predict step has been compiled."""
        return self.predict_step._cache_size()

    def views(
        self, images: ImageSet, proposals: ProposalSet | None, purpose: Purpose = "map"
    ) -> ViewStream:
        """Return the batches of all views of a set."""
        return view_batches(
            images,
            proposals,
            canvases=self.settings.canvases(purpose),
            flips=self.settings.flips,
            batch_size=self.settings.micro_batch,
            rules=self.rules,
            loading=Loading(loader=self.settings.loader),
        )

    def with_weights(self, params: Params, extras: dict) -> Predictor:
        """Return the same detector with the weights of another checkpoint; nothing is compiled anew."""
        return dataclasses.replace(self, params=params, extras=extras)

    def candidates(self, batches: Iterable[Batch]) -> Iterator[MergedImage]:
        """Predict batches of `views`; yield every image's candidate boxes with scores, all views merged."""
        return infer(
            lambda batch: self.predict_step(self.params, self.extras, batch),
            batches,
            num_views=self.settings.num_views,
            merge=self.settings.merge,
        )

    def select(self, candidates: Iterable[MergedImage], num_images: int) -> Results:
        """Select the detections of a set out of its candidates, as the settings define it."""
        return select(
            candidates,
            num_images=num_images,
            num_classes=len(self.class_names),
            top_k=self.settings.top_k,
            nms_thr=self.settings.nms_thr,
            score_thr=self.settings.score_thr,
            average_per_image=self.settings.average_per_image,
        )

    def detect(
        self,
        images: ImageSet,
        proposals: ProposalSet | None,
        purpose: Purpose = "map",
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> Results:
        """Detect in a whole set: all views, merged, selected.

        Args:
          images: the images; labels are not looked at.
          proposals: their proposals.
          purpose: which resize rule of the settings applies.
          progress: wraps the iterable of batches, to show how far it is.

        Returns:
          Detections, top boxes per class, image-level scores, and what the input met.
        """
        views = self.views(images, proposals, purpose)
        results = self.select(self.candidates(progress(views)), len(images))
        return dataclasses.replace(results, counts=views.counts)

    def locate(
        self,
        images: ImageSet,
        wanted: np.ndarray | None = None,
        purpose: Purpose = "map",
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
        keep_responses: int = 0,
    ) -> Located:
        """Read points and boxes off the maps of a whole set.

        Args:
          images: the images; labels are not looked at.
          wanted: [n, c] bool, classes to examine beside the predicted ones; `None` for no others.
          purpose: which resize rule of the settings applies.
          progress: wraps the iterable of batches, to show how far it is.
          keep_responses: keep the response maps of so many of the first images, to draw them.
        """
        views = self.views(images, None, purpose)
        single = self.method.single_label
        located = locate(
            self.candidates(progress(views)),
            np.array([(record.height, record.width) for record in images.records]),
            num_classes=len(self.class_names),
            wanted=wanted,
            claims=claims_best if single else claims_above(self.localization.predicted_thr),
            reading=self.localization.reading,
            num_best=ILSVRC_GUESSES if single else 0,
            keep_responses=keep_responses,
            separate_views=self.settings.merge == "union" and self.settings.num_views > 1,
        )
        counts = {**views.counts, "smaller_than_a_cell": int(located.too_small.sum())}
        return dataclasses.replace(located, counts=counts)

    def one_view(self) -> Predictor:
        """Return the same detector seeing every image once, at the first scale, unmirrored."""
        settings = dataclasses.replace(
            self.settings, scales=self.settings.scales[:1], flips=(False,)
        )
        return dataclasses.replace(self, settings=settings)

    def with_solver(self, solver: Solver) -> Predictor:
        """Return the same weights with another proposal map."""
        module = self.method.soft_proposal.clone(solver=solver)
        method = dataclasses.replace(self.method, soft_proposal=module)
        return dataclasses.replace(self, method=method, predict_step=predict_step(method))

    def score(self, detections: DetectionTable, truth: TruthTable) -> DetectionMetrics:
        """Return average precision as the settings define it."""
        return score_detections(detections, truth, self.settings)

    def localise(self, results: Results, truth: TruthTable) -> CorLocMetrics:
        """Return CorLoc as the settings define it."""
        return corloc(
            results.top_boxes,
            results.top_valid,
            truth,
            include_difficult=self.settings.corloc_difficult,
        )


def predict_step(method: Method) -> Callable[[Params, dict, Batch], Predictions]:
    """Return a method's predict function for all of its outputs, jitted."""
    return jax.jit(
        lambda params, extras, batch: method.predict(params, extras, batch, method.outputs)
    )


def open_checkpoint(
    path: str | Path,
    step: int | None = None,
    *,
    weights: Literal["params", "ema"] = "params",
    changes: Sequence[str] = (),
) -> tuple[Predictor, ConfigDict, dict]:
    """Load a checkpoint ready to predict: its method, weights, and the configuration stored beside them.

    Args:
      path: a workdir, its `checkpoints` folder, or the folder of one step.
      step: which step; `None` takes the newest, or the one that `path` names.
      weights: the trained parameters, or their running average.
      changes: to `LOCATIONS` and to the test settings, such as "data.root=/data/VOCdevkit" and "nms_thr=0.4".

    Returns:
      The predictor, the configuration of its run with the changes, and the checkpoint's metadata (with "step").

    Raises:
      DataError: if there is no such checkpoint, it is damaged, or it has no running average.
      ConfigError: for a change that is not possible.
    """
    params, extras, metadata = load_checkpoint(path, step=step, weights=weights)
    config = change_config(build.from_dict(metadata["config"]), changes)
    class_names = tuple(metadata["class_names"])
    method = build.method(
        at_test(config), num_classes=len(class_names), max_classes=len(class_names)
    )
    predictor = Predictor.configured(config, method, params, extras, class_names)
    return predictor, config, metadata


def at_test(config: ConfigDict) -> ConfigDict:
    """Return the configuration of the network that is tested: its proposal map may be found in another way."""
    settings = build.localization_settings(config)
    if settings is None or settings.solver is None:
        return config
    config = config.copy_and_resolve_references()
    config.soft_proposal.solver = settings.solver
    return config


def score_detections(
    detections: DetectionTable, truth: TruthTable, settings: build.EvalSettings
) -> DetectionMetrics:
    """Return average precision as the settings define it."""
    return evaluate_detections(detections, truth, iou_thrs=settings.iou_thrs, ap_mode=settings.ap)


def truth_table(images: ImageSet, truth: GroundTruth) -> TruthTable:
    """Return the ground truth of a set as the evaluators read it."""
    selected = truth.select(images.image_ids)
    return TruthTable.from_annotations(selected.boxes.values(), num_classes=len(truth.class_names))


def change_config(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """Return a configuration with changes to `LOCATIONS` and to its test settings applied.

    Args:
      config: as a run has stored it; left alone.
      changes: such as "data.root=/data/VOCdevkit" or "nms_thr=0.4".

    Raises:
      ConfigError: for any other setting of the run, and as `change_settings`.
    """
    config, tests = config.copy_and_resolve_references(), {"eval": [], "localization": []}
    for change in changes:
        key, equals, value = change.partition("=")
        section, _, name = key.rpartition(".")
        section = section or "eval"
        if "localization" in config and section == "eval" and name in OF_BOXES:
            raise ConfigError(
                f"{key} is about boxes chosen among proposals; {config.method.name} reads its boxes off maps, as "
                "localization says: --set localization.nms_thr=0.7"
            )
        if section in tests and section in config:
            tests[section].append(f"{name}{equals}{value}")
        elif key not in LOCATIONS or section not in config:
            raise ConfigError(
                f"{key} cannot be set for a trained run; what can are the test settings, such as nms_thr=0.4, "
                f"and where its files lie: {', '.join(LOCATIONS)}"
            )
        else:
            config[section][name] = value
    config.eval = dataclasses.asdict(change_settings(build.eval_settings(config), tests["eval"]))
    if "localization" in config:
        settings = build.localization_settings(config)
        settings = change_settings(settings, tests["localization"], "localization")
        config.localization = dataclasses.asdict(settings)
    return config


def change_settings(settings: Settings, changes: Sequence[str], section: str = "eval") -> Settings:
    """Return test settings with changes such as "nms_thr=0.4" or "scales=(480,688)" applied.

    Raises:
      ConfigError: for a setting that does not exist, with the closest one that does, or a value of
        another kind.
    """
    values = dataclasses.asdict(settings)
    for change in changes:
        key, _, text = change.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if isinstance(values.get(key), tuple) and not isinstance(value, tuple | list | str):
            value = (value,)
        values[key] = value
    return build.construct(type(settings), values, section)


def check_classes(images: ImageSet, class_names: tuple[str, ...]) -> None:
    """Raise `DataError` if the data's classes are not the checkpoint's."""
    if images.class_names != class_names:
        raise DataError(
            f"{images.name} has classes {', '.join(images.class_names)}, but the checkpoint was trained "
            f"for {', '.join(class_names)}; choose the data or the checkpoint that fits"
        )
