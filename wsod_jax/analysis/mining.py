"""Pseudo boxes that a run mines in single images, and the graphs that OIM mines them from.

Where something is drawn, `pixels` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax import viz
from wsod_jax.config.overrides import locations
from wsod_jax.config.run_config import RunConfig
from wsod_jax.data.records import AnnotatedBoxes
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.methods.assign import Mined
from wsod_jax.methods.base import RefinementMethod
from wsod_jax.methods.oim import Oim, appearance_distances, search_nodes, spatial_graph
from wsod_jax.ops.boxes import scale_boxes
from wsod_jax.ops.masked import masked_mean
from wsod_jax.runs.predictor import check_classes, load_run
from wsod_jax.runs.training_data import TrainingData, read_annotated_boxes
from wsod_jax.types import Batch, Params

CELL_PX = 420  # longer side of each stage's figure
MAX_NEIGHBORS = 16  # drawn of a core's spatial graph, the nearest


@dataclasses.dataclass(frozen=True)
class MinedImage:
    """What was mined in one training image, as NumPy arrays.

    Attributes:
      boxes: [r, 4] proposals, network pixels.
      mask: [r] bool.
      features: [r, f] float32, what mining compared.
      mined: with a leading axis [s], one entry per refinement stage.
      scale: [2] network pixels per pixel of the original image, (x, y).
    """

    boxes: np.ndarray
    mask: np.ndarray
    features: np.ndarray
    mined: Mined
    scale: np.ndarray

    @property
    def num_stages(self) -> int:
        """Number of refinement stages s."""
        return self.mined.pseudo.mask.shape[0]

    def original(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes [n, 4] from network pixels to those of the original image."""
        return scale_boxes(boxes, *(1 / self.scale))


@dataclasses.dataclass(frozen=True)
class ClassGraph:
    """The spatial graph around a class's core and its appearance graph, as indices of proposals.

    Attributes:
      core: the class's top proposal.
      neighbors: [n] proposals with IoU >= T to the core, nearest in features first.
      nodes: [g] accepted instances.
      rejected: [m] the nearest proposals apart from core and nodes that are not near enough.
      distances: [r] appearance distances to the core, D.
      d_avg: their mean over the spatial graph.
      limit: α D_avg.
    """

    core: int
    neighbors: np.ndarray
    nodes: np.ndarray
    rejected: np.ndarray
    distances: np.ndarray
    d_avg: float
    limit: float

    def relative(self, rows: np.ndarray) -> np.ndarray | None:
        """Return D / D_avg of proposals; `None` where D_avg is 0: a core without neighbors finds no node."""
        return self.distances[rows] / self.d_avg if self.d_avg > 0 else None


@dataclasses.dataclass(frozen=True)
class MiningRun:
    """A checkpoint of a method that mines, and the images it mines in.

    Attributes:
      method: what mines; its static maxima fit the training set.
      params: its parameters.
      data: the training split.
      config: of the run.
      step: of the checkpoint; the α of OIM and the dropout masks depend on it.
    """

    method: RefinementMethod
    params: Params
    data: TrainingData
    config: RunConfig
    step: int

    @classmethod
    def open(
        cls, path: str | Path, step: int | None = None, changes: Sequence[str] = ()
    ) -> MiningRun:
        """Load a checkpoint and the training set named in its configuration.

        Args:
          path: a workdir, or the folder of one checkpoint.
          step: which step; `None` takes the newest, or the one that `path` names.
          changes: to where its files lie, see `runs.load_run`.

        Raises:
          ConfigError: for another change.
          DataError: if there is no such checkpoint, its method mines nothing, or the training set is
            gone or has other classes.
        """
        predictor = load_run(
            path, step, weights="params", changes=changes
        )  # what the loss mines with
        places = locations(predictor.config)
        for change in changes:
            if change.partition("=")[0] not in places:
                raise ConfigError(
                    f"{change!r}: mining repeats a training step, so only file locations can be changed; "
                    f"allowed are {', '.join(places)}"
                )
        if not isinstance(predictor.method, RefinementMethod):
            raise DataError(
                f"{path} is a checkpoint of {predictor.config.method.name!r}, which mines no pseudo boxes; "
                "oicr, pcl, mist and oim do"
            )
        config = predictor.config
        data = TrainingData.read(config)
        check_classes(data.image_set, predictor.class_names)
        step = predictor.metadata["step"]
        return cls(predictor.method, predictor.params, data, config, step)

    def objects(self) -> AnnotatedBoxes:
        """Return the annotated objects of the training set, which training never saw.

        Raises:
          ConfigError: if its reader knows none.
        """
        return read_annotated_boxes(self.config, self.config.data.train_split)

    def mine(self, positions: Sequence[int]) -> dict[int, MinedImage]:
        """Mine in some images as the training step after this checkpoint would, at the first scale, unmirrored.

        Args:
          positions: of the images in the training set.

        Returns:
          Position -> what was mined; images that cannot be read or have no proposals are left out.
        """
        subset = dataclasses.replace(self.data, image_set=self.data.image_set.select(positions))
        found = {}
        for batch in subset.fixed_batches(len(positions)):
            if not batch.image_mask[0]:
                continue
            position = positions[int(batch.image_index[0])]
            batch = batch.replace(image_index=np.array([position], np.int32))  # seeds its dropout
            mined, features = jax.tree.map(
                lambda x: np.asarray(x[0]), self.mine_step(self.params, batch)
            )
            found[position] = MinedImage(
                batch.proposals[0], batch.proposal_mask[0], features, mined, batch.views.scale[0]
            )
        return found

    @functools.cached_property
    def mine_step(self) -> Callable[[Params, Batch], tuple[Mined, jax.Array]]:
        """The jitted mining, with the features it compares; one compilation per canvas."""
        return jax.jit(self._mine)

    def _mine(self, params: Params, batch: Batch) -> tuple[Mined, jax.Array]:
        key = jax.random.fold_in(jax.random.key(self.config.seed), self.step)
        scored = self.method.score(params, batch, key)
        mined = self.method.mine_stages(scored, batch, jnp.asarray(self.step))
        return mined, self.method.mined_features(scored)

    def alpha(self) -> float:
        """Return OIM's α at this step.

        Raises:
          DataError: if the method is not OIM.
        """
        return float(self._oim.alpha_at(jnp.asarray(self.step)))

    def class_graph(
        self, image: MinedImage, stage: int, class_index: int, *, num_rejected: int = 4
    ) -> ClassGraph | None:
        """Return how OIM found one class's instances in an image.

        Args:
          image: from `mine`.
          stage: 0-based.
          class_index: one of the image's labels.
          num_rejected: how many of the proposals that just failed to become nodes to return.

        Returns:
          The graph, `None` if the class has no core.

        Raises:
          DataError: if the method is not OIM.

        Source: Lin et al. 2020 (OIM), figure 3 and algorithm 1.
        """
        pseudo = jax.tree.map(lambda x: x[stage], image.mined.pseudo)
        own = pseudo.mask & (pseudo.classes == class_index)
        if not (own & pseudo.is_seed).any():
            return None
        core = int(pseudo.index[own & pseudo.is_seed][0])
        nodes = pseudo.index[own & ~pseudo.is_seed]
        distances, near, d_avg, visited = jax.tree.map(
            np.asarray,
            _search(
                jnp.asarray(image.features, jnp.float32),
                jnp.asarray(image.boxes),
                jnp.asarray(image.mask),
                jnp.int32(core),
                self._oim.iou_thrs[1],
                self._oim.davg_includes_core,
                num_slots=len(pseudo.mask) + num_rejected,
            ),
        )
        d_avg = float(d_avg)
        limit = self.alpha() * d_avg
        beyond = (visited >= 0) & (distances[visited] >= limit) & ~np.isin(visited, nodes)
        neighbors = np.setdiff1d(np.flatnonzero(near), [core])
        neighbors = neighbors[np.argsort(distances[neighbors], kind="stable")]
        rejected = visited[beyond][:num_rejected]
        return ClassGraph(core, neighbors, nodes, rejected, distances, d_avg, limit)

    @property
    def _oim(self) -> Oim:
        """The method, if it is OIM."""
        if not isinstance(self.method, Oim):
            raise DataError(
                f"the graphs are OIM's, but this run's method is {type(self.method).__name__}; "
                "the command `pseudo` shows what any method mined"
            )
        return self.method


@functools.partial(jax.jit, static_argnames="num_slots")
def _search(
    features: jax.Array,
    boxes: jax.Array,
    mask: jax.Array,
    core: jax.Array,
    fg_iou_thr: float,
    davg_includes_core: bool,
    *,
    num_slots: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return distances to the core [r], its spatial graph [r] bool, D_avg, and the search without a limit.

    The search that finds the nodes visits, going on past its limit, the rejected proposals next.
    """
    distances = appearance_distances(features, core)
    near, free = spatial_graph(boxes, mask, core, fg_iou_thr, davg_includes_core)
    visited, _ = search_nodes(distances, jnp.float32(jnp.inf), boxes, free, num_slots)
    return distances, near, masked_mean(distances, near), visited


def draw_mined_stages(
    pixels: np.ndarray,
    image: MinedImage,
    *,
    class_names: Sequence[str],
    truth_boxes: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the pseudo boxes of every stage side by side, with the proposals that took their labels.

    Args:
      image: what was mined in it.
      class_names: c names.
      truth_boxes: [t, 4] annotated objects in original pixels, to compare with.
    """
    figures, captions = [], []
    for stage in range(image.num_stages):
        targets, pseudo = jax.tree.map(
            lambda x, s=stage: x[s], (image.mined.targets, image.mined.pseudo)
        )
        foreground = (targets.labels > 0) & (targets.weights > 0)
        figures.append(
            viz.draw_pseudo_labels(
                pixels,
                pseudo.replace(boxes=image.original(pseudo.boxes)),
                proposals=image.original(image.boxes),
                targets=targets.replace(labels=np.where(foreground, targets.labels, 0)),
                class_names=class_names,
                truth_boxes=truth_boxes,
            )
        )
        captions.append(
            f"head {stage + 1}: boxes {int(pseudo.mask.sum())}, "
            f"positive proposals {int(foreground.sum())}"
        )
    return viz.contact_sheet(figures, captions=captions, columns=len(figures), cell_px=CELL_PX)


def draw_class_graphs(
    pixels: np.ndarray,
    image: MinedImage,
    graphs: Sequence[ClassGraph | None],
    *,
    class_name: str,
) -> np.ndarray:
    """Draw a class's graphs of every stage side by side.

    Args:
      image: what was mined in it.
      graphs: of the class, one per stage; `None` where it has no core.
      class_name: for the captions.

    Returns:
      [H', W', 3] uint8 RGB, see `viz.draw_graphs`; numbers on the edges are D / D_avg.
    """
    boxes = image.original(image.boxes)
    figures, captions = [], []
    for stage, graph in enumerate(graphs, start=1):
        if graph is None:
            figures.append(pixels)
            captions.append(f"{class_name}, head {stage}: no core")
            continue
        figures.append(
            viz.draw_graphs(
                pixels,
                boxes[graph.core],
                neighbors=boxes[graph.neighbors[:MAX_NEIGHBORS]],
                nodes=boxes[graph.nodes],
                node_distances=graph.relative(graph.nodes),
                rejected=boxes[graph.rejected],
                rejected_distances=graph.relative(graph.rejected),
            )
        )
        captions.append(
            f"{class_name}, head {stage}: neighbors {len(graph.neighbors)}, "
            f"nodes {len(graph.nodes)}"
        )
    return viz.contact_sheet(figures, captions=captions, columns=len(figures), cell_px=CELL_PX)
