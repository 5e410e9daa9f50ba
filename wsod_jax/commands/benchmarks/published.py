"""Methods and batches at the size of their publications, and the parts into which a training step is cut."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks.kernels import random_boxes
from wsod_jax.errors import DataError
from wsod_jax.methods.base import Method, ProposalMethod, RefinementMethod, image_keys
from wsod_jax.methods.mist import Mist
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.oim import Oim
from wsod_jax.methods.pcl import Pcl
from wsod_jax.methods.spn import Spn
from wsod_jax.methods.ws_jds import WsJds
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.aspp import Aspp
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.proposal_network import ProposalOutputs
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.types import Batch, FeatureMap, Params, Views

MULTIPLE = 32  # canvas sides are multiples of it


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the images of a batch are drawn.

    Attributes:
      images: rows.
      image: (height, width) in pixels.
      canvas: (height, width) of the array that they lie in.
      proposals: real ones per image; 0 for methods without.
      rows: proposals and padding.
      num_classes: c.
    """

    images: int
    image: tuple[int, int]
    canvas: tuple[int, int]
    proposals: int = 0
    rows: int = 0
    num_classes: int = 20

    def __str__(self) -> str:
        return _words(self.images, self.image, self.canvas, self.proposals, self.rows)

    @classmethod
    def of_photograph(cls, scale: int) -> Size:
        """Return one photograph of 375 x 500 pixels whose shorter side becomes `scale`, with 2 000 proposals."""
        canvas = tuple(-(-side // MULTIPLE) * MULTIPLE for side in (scale, scale * 3 // 2))
        return cls(1, (scale, round(scale * 500 / 375)), canvas, proposals=2000, rows=2048)


SIZES = {
    "proposals": (Size.of_photograph(688), Size.of_photograph(1200)),
    "maps": (Size(16, (224, 224), (224, 224)), Size(4, (560, 560), (560, 560))),
}
SMALL_SIZES = {
    "proposals": (Size(1, (60, 90), (64, 96), proposals=30, rows=32, num_classes=4),),
    "maps": (Size(2, (64, 64), (64, 64), num_classes=4),),
}


# ---------------------------------------------------------------------------------------------------
# Methods


def make_method(name: str, num_classes: int, dtype: str, small: bool) -> Method:
    """Make a method on VGG16 with its published options, or on a tiny network.

    Args:
      name: one of `METHODS`.
      num_classes: c.
      dtype: "bfloat16" or "float32", of backbone and box head.
      small: take the tiny network.
    """
    return METHODS[name](num_classes, jnp.dtype(dtype), small)


def _detector(cls: type, num_classes: int, dtype: Any, small: bool) -> Method:
    return cls(
        backbone=TinyNet(dtype=dtype) if small else Vgg16(dtype=dtype),
        num_classes=num_classes,
        max_classes=min(num_classes, 4),
        box_head=BoxHead((32, 32) if small else (4096, 4096), dtype=dtype),
    )


def _spn(num_classes: int, dtype: Any, small: bool) -> Method:
    backbone = TinyNet(dtype=dtype) if small else Vgg16(dtype=dtype, dilated=False, frozen=())
    return Spn(backbone=backbone, num_classes=num_classes)


def _ws_jds(num_classes: int, dtype: Any, small: bool) -> Method:
    branch = Aspp(dilations=(1, 2), channels=8) if small else Aspp(dtype=dtype)
    method = _detector(WsJds, num_classes, dtype, small)
    # random weights are confident of nothing
    return dataclasses.replace(method, segmentation=branch, confidence_thr=0.0)


METHODS: dict[str, Callable[[int, Any, bool], Method]] = {
    "oim_ir": functools.partial(_detector, Oim),
    "spn": _spn,
    "mist": functools.partial(_detector, Mist),
    "pcl": functools.partial(_detector, Pcl),
    "oicr": functools.partial(_detector, Oicr),
    "wsddn": functools.partial(_detector, Wsddn),
    "ws_jds": _ws_jds,
}
DEFAULT = ("oim_ir", "spn")  # what is measured unless asked otherwise; new families come next


# ---------------------------------------------------------------------------------------------------
# Batches


def random_batch(size: Size) -> Batch:
    """Draw images of random pixels with two positive classes each, and proposals of all sizes."""
    rng = np.random.default_rng(0)
    count, (height, width) = size.images, size.image
    image = np.zeros((count, *size.canvas, 3), np.uint8)
    image[:, :height, :width] = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    labels = np.zeros((count, size.num_classes), np.int32)
    labels[:, [0, size.num_classes // 2]] = 1
    sizes = np.tile(np.int32([height, width]), (count, 1))
    batch = Batch(
        image=image,
        image_size=sizes,
        image_mask=np.ones(count, bool),
        image_index=np.arange(count, dtype=np.int32),
        labels=labels,
        views=Views(
            scale=np.ones((count, 2), np.float32),
            offset=np.zeros((count, 2), np.int32),
            flipped=np.zeros(count, bool),
            original_size=sizes,
        ),
    )
    if not size.rows:
        return batch
    boxes = np.zeros((count, size.rows, 4), np.float32)
    boxes[:, : size.proposals] = [
        random_boxes(rng, size.proposals, height, width) for _ in range(count)
    ]
    mask = np.tile(np.arange(size.rows) < size.proposals, (count, 1))
    rows = np.tile(np.arange(size.rows, dtype=np.int32), (count, 1))
    return batch.replace(proposals=boxes, proposal_mask=mask, representative=rows)


def stored_batches(path: Path) -> list[Batch]:
    """Return the first batch of every layout in a file that `data.input.stored_batches.save_batches` wrote.

    Raises:
      DataError: the file does not hold batches, or its batches have no labels.
    """
    from wsod_jax.data.input.stored_batches import play_batches

    found: dict[Any, Batch] = {}
    for batch in play_batches(path):
        found.setdefault(str(jax.tree.map(lambda x: (x.shape, x.dtype), batch)), batch)
    if not found or any(batch.labels is None for batch in found.values()):
        raise DataError(f"{path}: has no batches with labels; write one with save_batches")
    return list(found.values())


def describe(batch: Batch) -> str:
    """Return the size of a batch in words, as of a `Size`; of several images the largest."""
    image = tuple(int(side) for side in np.asarray(batch.image_size).max(axis=0))
    canvas = image if batch.image is None else batch.image.shape[1:3]
    if batch.proposals is None:
        return _words(len(batch.image_size), image, canvas, 0, 0)
    real = int(np.asarray(batch.proposal_mask).sum(axis=1).max())
    return _words(len(batch.image_size), image, canvas, real, batch.proposals.shape[1])


def _words(images: int, image: tuple, canvas: tuple, proposals: int, rows: int) -> str:
    text = f"{images} of {image[0]}x{image[1]} px"
    text += f" on {canvas[0]}x{canvas[1]}" if canvas != image else ""
    return text + (f", {proposals} of {rows} proposals" if rows else "")


def without_padding(batch: Batch) -> Iterator[Batch]:
    """Yield the shapes of every real image alone: its valid pixels (or map cells) and its real proposals."""
    for row in np.flatnonzero(batch.image_mask):
        one = jax.tree.map(lambda x, row=row: np.asarray(x)[row : row + 1], batch)
        if one.image is not None:
            height, width = one.image_size[0]
            one = one.replace(image=one.image[:, :height, :width])
        if one.features is not None:
            maps = {
                name: m.replace(features=m.features[:, : m.size[0, 0], : m.size[0, 1]])
                for name, m in one.features.items()
            }
            one = one.replace(features=maps)
        if one.proposals is not None:
            real = one.proposal_mask[0]
            names = ("proposals", "proposal_mask", "proposal_scores", "representative")
            values = {name: getattr(one, name) for name in names}
            kept = {name: x[:, real] for name, x in values.items() if x is not None}
            one = one.replace(**kept)
        yield jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), one)


# ---------------------------------------------------------------------------------------------------
# Parts of a training step, each forward and, where gradients flow, backward


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a step as a function of its own.

    Attributes:
      run: (params, batch, *inputs) -> what it computes.
      inputs: (params, batch) -> shapes of what the parts before would hand it; all arguments may be shapes.
    """

    run: Callable
    inputs: Callable[[Any, Any], tuple[Any, ...]]


def parts(method: Method) -> dict[str, Part]:
    """Cut a method's training step into parts: backbone, and pooling, heads and mining or all that is above it."""

    def features_of(params: Params, batch: Batch) -> FeatureMap:
        return method.backbone.apply({"params": params["backbone"]}, batch)["c5"]

    def backbone(params: Params, batch: Batch) -> tuple[Any, ...]:
        def forward(own: Params) -> jax.Array:
            return features_of({"backbone": own}, batch).features

        return _both_ways(forward, params["backbone"])

    def maps(params: Any, batch: Any) -> tuple[Any, ...]:
        return (jax.eval_shape(features_of, params, batch),)

    cut = {"backbone": Part(backbone, lambda params, batch: ())}
    if not isinstance(method, ProposalMethod):
        return cut | {"above the backbone": Part(functools.partial(_above, method), maps)}
    network = method.network

    def apply(params: Params, *arguments: Any, method: str) -> Any:
        return network.apply({"params": params}, *arguments, method=method)

    def pooling(params: Params, batch: Batch, maps: FeatureMap) -> tuple[Any, ...]:
        def forward(features: jax.Array) -> jax.Array:
            placed = maps.replace(features=features)
            return apply(params, placed, batch, batch.proposal_mask, method="pool")

        return _both_ways(forward, maps.features)

    def pooled(params: Any, batch: Any) -> tuple[Any, ...]:
        return (jax.eval_shape(pooling, params, batch, *maps(params, batch))[0],)

    def score(params: Params, batch: Batch, pooled: jax.Array) -> ProposalOutputs:
        keys = image_keys(jax.random.key(0), batch)
        return apply(params, pooled, batch.proposal_mask, keys, method="score")

    def heads(params: Params, batch: Batch, pooled: jax.Array) -> tuple[Any, ...]:
        own = {name: value for name, value in params.items() if name != "backbone"}

        def forward(own: Params, pooled: jax.Array) -> tuple[jax.Array, ...]:
            outputs = score({**params, **own}, batch, pooled)
            return outputs.mil_scores, outputs.refine_logits

        return _both_ways(forward, own, pooled)

    def scored(params: Any, batch: Any) -> tuple[Any, ...]:
        return (jax.eval_shape(score, params, batch, *pooled(params, batch)),)

    def mining(params: Params, batch: Batch, outputs: ProposalOutputs) -> Any:
        del params
        outputs = outputs.replace(mask=batch.proposal_mask)
        return method.mine_stages(outputs, batch, jnp.zeros((), jnp.int32))

    cut |= {"pooling": Part(pooling, maps), "heads": Part(heads, pooled)}
    if isinstance(method, RefinementMethod):
        cut["mining"] = Part(mining, scored)
    return cut


def _both_ways(forward: Callable, *inputs: Any) -> tuple[Any, ...]:
    """Run a function, and its backward pass with its own output as the gradient that arrives."""
    outputs, pull = jax.vjp(forward, *inputs)
    return outputs, pull(outputs)


def _above(method: Method, params: Params, batch: Batch, maps: FeatureMap) -> Any:
    """Run the loss and its gradient on a given map, with respect to the map too."""

    def loss(params: Params, features: jax.Array) -> jax.Array:
        seen = batch.replace(image=None, features={"c5": maps.replace(features=features)})
        terms = method.loss(params, {}, seen, jax.random.key(0), jnp.zeros((), jnp.int32)).terms
        return sum(term.mean() for term in terms.values())

    own = {name: value for name, value in params.items() if name != "backbone"}
    fixed = params.get("backbone", {})
    return jax.grad(lambda own, x: loss({**own, "backbone": fixed}, x), (0, 1))(own, maps.features)


def draw(shapes: Any) -> Any:
    """Draw arrays of these shapes on the device: numbers in [0, 1), True, and 0 for integers."""

    def one(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jax.random.uniform(jax.random.key(0), shape.shape, shape.dtype)
        return jnp.full(shape.shape, shape.dtype == bool, shape.dtype)

    return jax.tree.map(one, shapes)
