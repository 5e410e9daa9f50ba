"""VGG16's dilated body against the numbers of PCL's authors' code; see tests/golden/operators/README.md."""

import numpy as np

from tests.golden import cases
from tests.nn.cases import apply
from wsod_jax.nn.vgg import STAGES, Vgg16


def weights(names):
    """Return the weights that the golden numbers were made with, by the names of that code."""
    shapes, num_inputs = {}, 3
    for stage, (count, channels) in enumerate(STAGES, start=1):
        for i in range(count):
            shapes[f"conv{stage}.{2 * i}"] = (channels, num_inputs, 3, 3)
            num_inputs = channels
    params = {}
    for number, name in enumerate(names):
        stage, place, kind = name.split(".")
        shape = shapes[f"{stage}.{place}"]
        is_kernel = kind == "weight"
        drawn = np.random.default_rng([2026, number]).uniform(
            -1, 1, shape if is_kernel else shape[0]
        )
        drawn *= np.sqrt(6 / np.prod(shape[1:])) if is_kernel else 0.1
        layer = params.setdefault(f"{stage}_{int(place) // 2 + 1}", {})
        value = drawn.transpose(2, 3, 1, 0) if is_kernel else drawn
        layer["kernel" if is_kernel else "bias"] = value.astype(np.float32)
    return params


def test_vgg16_dilated():
    found = dict(cases("operators/vgg16_dilated.npz"))
    params = weights(found["8x8"]["names"].tolist())
    assert sorted(params) == sorted(Vgg16.layers)
    for of in found.values():
        image = of["image"].transpose(1, 2, 0)[None].astype(np.float32)
        backbone = Vgg16(mean=tuple(of["mean"][::-1].tolist()), frozen=())
        maps = apply(backbone, {"params": params}, image, [image.shape[1:3]])
        assert maps.features.shape == tuple(of["shape"][[0, 2, 3, 1]])
        scale = of["out"].max()
        features = np.asarray(maps.features)[0, ..., ::16].transpose(2, 0, 1)
        np.testing.assert_allclose(features / scale, of["out"] / scale, atol=1e-5)
