"""A trained detector and the way it is tested: views of a set, predicted on all local devices, merged and detected."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from wsod_jax import build
from wsod_jax.build import CUES, METHODS
from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.config.run_config import RunConfig
from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import ViewStream, view_batches
from wsod_jax.data.input.pooled_cache import PooledCache
from wsod_jax.data.input.proposal_rows import ProposalRules
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.proposals.selective_search import SearchOptions, search_images
from wsod_jax.data.readers.folder import images_of, is_one_image
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import DataError
from wsod_jax.evaluation import inference
from wsod_jax.evaluation.decoding import Selected
from wsod_jax.evaluation.inference import Candidates, Model
from wsod_jax.methods.base import Method
from wsod_jax.train.checkpoint import load_checkpoint
from wsod_jax.train.distributed import refuse_several
from wsod_jax.train.sharding import make_mesh, put, replicate
from wsod_jax.types import Batch, Detections, ImageResult, Params, Predictions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectedImage(ImageResult):
    """What was detected in one image.

    Attributes:
      class_names: c names; `classes`, `image_scores` and `maps` count by them.
      path: of the image file, `None` for an array.
    """

    class_names: tuple[str, ...]
    path: Path | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class name of each of the n detections; `None` for methods without boxes."""
        return None if self.classes is None else tuple(self.class_names[i] for i in self.classes)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained detector and the way it is tested.

    Attributes:
      config: of its run, with the changes it was opened with.
      method: what predicts.
      params, extras: its state, a copy on every device of the mesh.
      class_names: c names.
      settings: views, NMS and metrics of a pass: `config.eval`, unless replaced.
      metadata: what its checkpoint tells of the run, with "step"; {} while it is trained.
      predict_step: the method's predict function, jitted, (params, extras, batch, want) -> `Predictions` with
        `want` a frozenset; one compilation per canvas.
      mask_step: its predict_masks, jitted likewise; `None` for methods without.
      mesh: the devices that share a group of images.
    """

    config: RunConfig
    method: Method
    params: Params
    extras: dict
    class_names: tuple[str, ...]
    settings: EvalOptions
    metadata: dict[str, Any]
    predict_step: Callable[[Params, dict, Batch, frozenset[str]], Predictions]
    mask_step: Callable[[Params, dict, Batch, Any, Detections], jax.Array] | None
    mesh: Mesh

    @classmethod
    def configured(
        cls,
        config: RunConfig,
        method: Method,
        params: Params,
        extras: dict,
        class_names: tuple[str, ...],
        metadata: dict[str, Any] | None = None,
    ) -> Predictor:
        """Return a predictor that tests as a configuration says, on all devices of this process."""
        refuse_several("prediction of a set")
        mesh = make_mesh()
        params, extras = replicate((params, extras), mesh)
        return cls(
            config,
            method,
            params,
            extras,
            class_names,
            config.eval,
            metadata or {},
            jax.jit(method.predict, static_argnums=3),
            None if method.predict_masks is None else jax.jit(method.predict_masks),
            mesh,
        )

    @property
    def rules(self) -> ProposalRules | None:
        """Which proposals are used, `None` for methods that use none."""
        return None if self.config.proposals is None else self.config.proposals.rules

    def num_compilations(self) -> int:
        """Return how often the predict step has been compiled."""
        return self.predict_step._cache_size()

    def fingerprint(self) -> str:
        """Return a checksum of parameters and extras, 8 hex digits, by which runs of one method are told apart."""
        value = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path((self.params, self.extras)):
            value = zlib.crc32(jax.tree_util.keystr(path).encode(), value)
            value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
        return f"{value:08x}"

    def with_weights(self, params: Params, extras: dict) -> Predictor:
        """Return the same detector with the weights of another checkpoint; nothing is compiled again."""
        params, extras = replicate((params, extras), self.mesh)
        return dataclasses.replace(self, params=params, extras=extras)

    def with_settings(self, **changes: Any) -> Predictor:
        """Return the same detector tested otherwise, such as `scales=(480,)`."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changes))

    def of_pass(self, name: str) -> Predictor:
        """Return the same detector with the settings of a further pass."""
        return dataclasses.replace(self, settings=self.settings.of_pass(name))

    def changed(self, changes: Sequence[str]) -> Predictor:
        """Return the same weights tested otherwise, as `runs.load_run` with these changes would."""
        config = build.change(self.config, changes)
        count = len(self.class_names)
        method = build.method(config, num_classes=count, max_classes=count, max_targets=1)
        found = Predictor.configured(
            config, method, self.params, self.extras, self.class_names, self.metadata
        )
        return dataclasses.replace(found, settings=self.settings)

    def one_view(self) -> Predictor:
        """Return the same detector seeing every image once, at the first scale, unmirrored."""
        return self.with_settings(scales=self.settings.scales[:1], flips=(False,), passes={})

    def detect(self, images: Any) -> DetectedImage | list[DetectedImage]:
        """Detect in images of any kind; proposals, where the method needs them, are computed as for training.

        Args:
          images: an image, an array [h, w, 3] uint8 RGB or the path of a file; or several, a sequence of images or a
            folder, searched with its subfolders and sorted.

        Returns:
          What was found, in pixels of the original: of an image one object, of several a list in their order.

        Raises:
          DataError: names every image that cannot be used.
        """
        found = self.unlabeled(images_of(images))
        proposals = None
        if self.config.proposals is not None and len(found):
            options, problem = SearchOptions.like(self.config.proposals.path)
            if problem is not None:
                message = f"proposals by {options.generator}, since {problem}"
                warnings.warn(message, stacklevel=2)
            proposals = search_images(found, options)
        # Threads, whatever the run was tested with, do without TensorFlow.
        results = (
            self.with_settings(loader="threads").predict(found, proposals) if len(found) else []
        )
        detected = [
            DetectedImage(**vars(one), class_names=self.class_names, path=record.path)
            for record, one in zip(found.records, results, strict=True)
        ]
        return detected[0] if is_one_image(images) else detected

    def unlabeled(self, images: ImageSet) -> ImageSet:
        """Return a set with this detector's classes and unknown labels."""
        labels = (-1,) * len(self.class_names)
        records = tuple(dataclasses.replace(record, labels=labels) for record in images.records)
        return dataclasses.replace(images, class_names=self.class_names, records=records)

    def views(
        self,
        images: ImageSet,
        proposals: ProposalSet | None = None,
        cache: PooledCache | None = None,
    ) -> ViewStream:
        """Return the batches of all views of a set; a group of images has a row for every device at least."""
        settings, devices = self.settings, self.mesh.size
        return view_batches(
            images,
            proposals,
            canvases=settings.canvases,
            flips=settings.flips,
            batch_size=-(-settings.micro_batch // devices) * devices,
            rules=self.rules,
            loading=Loading(loader=settings.loader, cache=cache),
        )

    def pooled_cache(self, images: ImageSet, proposals: ProposalSet | None) -> PooledCache | None:
        """Return the pooled proposals that the run's configuration keeps; `None` if it keeps none, or no more fit."""
        if self.config.train.cache != "proposals":
            return None
        folder, name = self.config.train.cache_folder, self.config.backbone.architecture
        params = jax.device_get({"backbone": self.params["backbone"]})
        try:
            cache = PooledCache(self.method.pool, params, images, folder, name=name)
        except OSError as error:
            logger.warning("pooled proposals are neither read nor kept: %s", error)
            return None
        missing = cache.missing_bytes(proposals, self.rules.max_proposals, self.settings.num_views)
        if missing > 0:
            logger.warning("%s is not used, its disk lacks %.1f GB", cache.folder, missing / 1e9)
            return None
        return cache

    def results(
        self,
        views: Iterable[Batch],
        query: np.ndarray | None = None,
        want: frozenset[str] | None = None,
    ) -> Iterator[ImageResult]:
        """Predict the batches of `views`; yield every image's result, in the order of the batches.

        Args:
          views: of `views`; may be wrapped to show progress.
          query: [n, c] bool, classes whose maps are read besides the predicted ones.
          want: outputs of the method; `None` for all.
        """
        yield from inference.infer(*self._to_infer(views, want), query)

    def candidates(self, views: Iterable[Batch]) -> Iterator[Candidates]:
        """Yield what all rows of every image score, all views merged, before any selection."""
        yield from inference.candidates(*self._to_infer(views, frozenset({"boxes"})))

    def predict(
        self,
        images: ImageSet,
        proposals: ProposalSet | None = None,
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
        want: frozenset[str] | None = None,
    ) -> list[ImageResult]:
        """Predict a whole set.

        Args:
          images: the images; labels are not looked at.
          proposals: their proposals, for methods that score some.
          progress: wraps the iterable of batches, to show how far it is.
          want: outputs of the method; `None` for all.

        Returns:
          The results in the order of the images; those of images that cannot be read are missing.
        """
        results = [*self.results(progress(self.views(images, proposals)), want=want)]
        results.sort(key=lambda result: result.image_index)
        return [*self.selected(results, len(images))]

    def selected(self, results: Iterable[ImageResult], num_images: int) -> Selected:
        """Return results as they count; see `Selected`.

        Args:
          results: of the whole set, to be iterated several times.
          num_images: images of the set.
        """
        average = self.settings.average_per_image
        limit = None if average is None else average * num_images
        return Selected(results, limit, self.settings.max_per_image)

    def _to_infer(self, views: Iterable[Batch], want: frozenset[str] | None) -> tuple[Any, ...]:
        model = Model(
            self.method,
            self.params,
            self.extras,
            self.predict_step,
            self.mask_step,
            functools.partial(put, mesh=self.mesh),
        )
        outputs = self.method.outputs if want is None else self.method.outputs & want
        if "masks" in outputs and self.mask_step is None:
            outputs |= {"semantic"}  # masks are cut from class maps
        decoding = self.settings.decoding(is_single_label=self.method.single_label)
        return model, views, self.settings.wants(frozenset(outputs)), decoding


def bar(batches: Sequence[Batch]) -> Iterable[Batch]:
    """Show progress over batches, at once on a terminal, now and then in a log."""
    interval = 0.1 if sys.stderr.isatty() else 20.0
    return tqdm(batches, total=len(batches), unit="batch", mininterval=interval, delay=0.5)


def check_classes(images: ImageSet, class_names: tuple[str, ...]) -> None:
    """Raise `DataError` if the data's classes are not the checkpoint's."""
    if images.class_names != class_names:
        raise DataError(
            f"{images.name} has classes {', '.join(images.class_names)}, but the checkpoint was trained "
            f"for {', '.join(class_names)}; choose the data or the checkpoint that fits"
        )


def load_run(
    workdir: str | Path,
    step: int | None = None,
    *,
    weights: Literal["params", "ema"] | None = None,
    changes: Sequence[str] = (),
    methods: Mapping[str, type] = METHODS,
    cues: Mapping[str, type] = CUES,
) -> Predictor:
    """Open a trained run, ready to predict.

    Args:
      workdir: of the run, its `checkpoints` folder, or the folder of one step.
      step: which step; `None` takes the newest, or the one that `workdir` names.
      weights: the trained parameters, or their running average; `None` takes those that are the method's detector.
      changes: to how it is tested and where its files lie, such as "nms_thr=0.4" and "data.root=/data/VOCdevkit".
      methods: name -> class, a frozen dataclass each.
      cues: name -> class of the cue sources.

    Raises:
      DataError: if there is no such checkpoint, it is damaged, of version 0.1, or has no running average.
      ConfigError: for a change that is not possible.
    """
    params, extras, metadata = load_checkpoint(workdir, step=step, weights=weights)
    config = build.read_config(metadata["config"], methods=methods, cues=cues)
    config = build.change(config, changes)
    class_names = tuple(metadata["class_names"])
    count = len(class_names)
    method = build.method(config, num_classes=count, max_classes=count, max_targets=1)
    return Predictor.configured(config, method, params, extras, class_names, metadata)
