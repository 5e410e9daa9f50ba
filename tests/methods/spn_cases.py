"""Very small soft proposal networks, and what the tests of the network and of the method share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.methods.cases import NUM_CLASSES, make_batch
from wsod_jax.methods.spn import Spn
from wsod_jax.nn.spn_network import SoftProposal, SpnNetwork
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.types import Batch

TINY = TinyNet(widths=(4, 4, 8, 8))  # maps of 6x8 and 5x7 cells for the images of `spn_batch`
WIDTH = 6  # of the extra convolution


def spn(
    *,
    backbone=TINY,
    activation="sigmoid",
    extra_channels=WIDTH,
    insert_after=None,
    dropout_rate=0.0,
    **soft_proposal,
) -> Spn:
    """Make a method; what is not its own are options of the soft proposal module."""
    return Spn(
        backbone=backbone,
        num_classes=NUM_CLASSES,
        soft_proposal=SoftProposal(**soft_proposal),
        extra_channels=extra_channels,
        insert_after=insert_after,
        dropout_rate=dropout_rate,
        activation=activation,
    )


def spn_network(**options) -> SpnNetwork:
    """Make the network of `spn`."""
    return spn(**options).network


def spn_batch(seed: int, **options) -> Batch:
    """Random pixels without proposals; the second image is smaller than the canvas."""
    return make_batch(seed, **options).replace(
        proposals=None, proposal_mask=None, representative=None
    )


@functools.cache
def spn_params(network: SpnNetwork) -> dict:
    """Random parameters, biases too; the head's kernel large enough that scores are far from equal."""
    drawn = jax.eval_shape(lambda: network.init(jax.random.key(0), spn_batch(0)))["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        spread = (2.0 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0.1
        factor = 3.0 if path[0].key == "head" else 1.0
        return jnp.asarray(rng.normal(0, factor * spread, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, drawn)


def on_canvas(batch: Batch, canvas=(64, 96)) -> Batch:
    """The same images on a larger canvas, rubbish in the margin."""
    image = np.random.default_rng(0).integers(0, 256, (len(batch.labels), *canvas, 3))
    image = image.astype(np.float32)
    for row, (height, width) in enumerate(np.asarray(batch.image_size)):
        image[row, :height, :width] = batch.image[row, :height, :width]
    return batch.replace(image=jnp.asarray(image))


def final_features(network: SpnNetwork, params: dict, batch: Batch):
    """Return what the backbone gives, and what the last layer before the soft proposal module makes of it."""
    bound = network.bind({"params": params})
    maps = bound.backbone(batch)["c5"]
    return maps, bound.final_map(maps)


def logits_given(
    network: SpnNetwork, params: dict, batch: Batch, proposal_map: jax.Array
) -> jax.Array:
    """Return the logits that a network whose module ends it would have with this proposal map."""
    bound = network.bind({"params": params})
    _, maps = final_features(network, params, batch)
    return bound.head(maps.replace(features=maps.features * proposal_map[..., None]), None)[0]
