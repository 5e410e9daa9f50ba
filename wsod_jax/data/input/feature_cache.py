"""Feature maps of a frozen backbone, kept in memory. Needs no TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np

from wsod_jax.data.input.transforms import View
from wsod_jax.errors import ConfigError
from wsod_jax.types import Batch, FeatureMap

logger = logging.getLogger(__name__)


class FeatureCache:
    """Feature maps of a frozen backbone, computed once per image and view.

    Calling it replaces `Batch.image` by `Batch.features` with the name "c5". Maps are kept in host memory without
    their padding. As the input's `Loading.cache` it also saves decoding the images whose maps it has.

    Args:
      features_fn: jitted; takes a batch with an image, returns its feature map. It must be deterministic and treat
        images independently (no batch statistics).
      dtype: of the cached maps; "float16" halves memory and rounds to 11 bits. Batches get float32.
      max_bytes: limit of the cache; further maps are computed again each time.
    """

    def __init__(
        self,
        features_fn: Callable[[Batch], FeatureMap],
        *,
        dtype: Literal["float16", "float32"] = "float16",
        max_bytes: int = 8 * 2**30,
    ):
        if dtype not in ("float16", "float32"):
            raise ConfigError(f'dtype={dtype!r}; allowed are "float16" and "float32".')
        self._features_fn = features_fn
        self._dtype = np.dtype(dtype)
        self._max_bytes = max_bytes
        self._maps: dict[tuple[int, ...], np.ndarray] = {}
        self._shapes: dict[tuple[int, int], tuple[tuple[int, int, int], float]] = {}
        self._is_full = False
        self.num_bytes = 0
        self.num_computed = 0

    def __len__(self) -> int:
        return len(self._maps)

    def has(self, index: int, view: View, row: Batch | None = None) -> bool:
        """Return whether the map of this image and view is cached. Crops never are; others are never removed."""
        del row
        return not view.cropped and _key(index, view.canvas, view.size, view.flipped) in self._maps

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with features [b, h, w, d] float32 in place of `image`; padding is 0.

        Raises:
          ConfigError: if a value does not fit float16, or the batch shows random windows of its images, or is jittered.
        """
        if np.any(batch.views.offset) or batch.views.photometric is not None:
            raise ConfigError(
                "the batch has random windows or jittered colors of images, each with its own feature map, so a cache "
                'saves nothing. Set crop=None, crop_margin=0 and jitter="none", or disable the cache.'
            )
        canvas = tuple(batch.image.shape[1:3])
        keys = [
            _key(int(index), canvas, size, bool(flipped)) if real else None
            for index, size, flipped, real in zip(
                batch.image_index,
                batch.image_size.tolist(),
                batch.views.flipped,
                batch.image_mask,
                strict=True,
            )
        ]
        fresh = {}
        if canvas not in self._shapes or any(key and key not in self._maps for key in keys):
            fresh = self._compute(batch, canvas, keys)
        shape, stride = self._shapes[canvas]
        features = np.zeros((len(keys), *shape), np.float32)
        size = np.ones((len(keys), 2), np.int32)
        for row, key in enumerate(keys):
            if key:
                valid = self._maps[key] if key in self._maps else fresh[key]
                size[row] = valid.shape[:2]
                features[row, : valid.shape[0], : valid.shape[1]] = valid
        return batch.replace(image=None, features={"c5": FeatureMap(features, size, stride)})

    def _compute(
        self, batch: Batch, canvas: tuple[int, int], keys: list[tuple[int, ...] | None]
    ) -> dict[tuple[int, ...], np.ndarray]:
        """Return the maps that are not cached yet, and cache those that fit."""
        output = self._features_fn(batch)
        maps, sizes = np.asarray(output.features), np.asarray(output.size)
        self._shapes[canvas] = maps.shape[1:], output.stride
        fresh = {}
        for row, key in enumerate(keys):
            if key is None or key in self._maps:
                continue
            self.num_computed += 1
            height, width = sizes[row]
            valid = maps[row, :height, :width].astype(np.float32)
            if (
                self._dtype == np.float16
                and np.abs(valid).max(initial=0) > np.finfo(np.float16).max
            ):
                raise ConfigError('features exceed the range of float16; use dtype="float32".')
            fresh[key] = valid.astype(self._dtype)
            if self.num_bytes + fresh[key].nbytes <= self._max_bytes:
                self.num_bytes += fresh[key].nbytes
                self._maps[key] = fresh[key]
            elif not self._is_full:
                self._is_full = True
                logger.warning(
                    "feature maps fill %.1f GB after %d views; those of further views are computed again each time",
                    self.num_bytes / 1e9,
                    len(self._maps),
                )
        return fresh


def _key(
    index: int, canvas: tuple[int, int], size: tuple[int, int], flipped: bool
) -> tuple[int, ...]:
    return (int(index), *map(int, canvas), *map(int, size), int(flipped))
