"""Names and shapes of the parameters of importable architectures, in the product's layout."""

from __future__ import annotations

VGG16_CONVS = {  # layer: (input channels, output channels)
    "conv1_1": (3, 64),
    "conv1_2": (64, 64),
    "conv2_1": (64, 128),
    "conv2_2": (128, 128),
    "conv3_1": (128, 256),
    "conv3_2": (256, 256),
    "conv3_3": (256, 256),
    "conv4_1": (256, 512),
    "conv4_2": (512, 512),
    "conv4_3": (512, 512),
    "conv5_1": (512, 512),
    "conv5_2": (512, 512),
    "conv5_3": (512, 512),
}
VGG16_DENSE = {"fc6": (7 * 7 * 512, 4096), "fc7": (4096, 4096)}

SQUEEZENET_FIRES = {  # module: (input channels, squeeze channels, channels of each expand layer)
    "fire2": (64, 16, 64),
    "fire3": (128, 16, 64),
    "fire4": (128, 32, 128),
    "fire5": (256, 32, 128),
    "fire6": (256, 48, 192),
    "fire7": (384, 48, 192),
    "fire8": (384, 64, 256),
    "fire9": (512, 64, 256),
}


def vgg16_shapes(*, with_fc: bool) -> dict[str, tuple[int, ...]]:
    """Return parameter path -> shape for VGG16's convolutions and, if asked for, fc6 and fc7."""
    kernels = {name: (3, 3, *channels) for name, channels in VGG16_CONVS.items()}
    if with_fc:
        kernels |= VGG16_DENSE
    return _with_biases(kernels)


def squeezenet_shapes() -> dict[str, tuple[int, ...]]:
    """Return parameter path -> shape for SqueezeNet 1.1 up to fire9."""
    kernels = {"conv1": (3, 3, 3, 64)}
    for name, (width, squeeze, expand) in SQUEEZENET_FIRES.items():
        kernels[f"{name}/squeeze1x1"] = (1, 1, width, squeeze)
        kernels[f"{name}/expand1x1"] = (1, 1, squeeze, expand)
        kernels[f"{name}/expand3x3"] = (3, 3, squeeze, expand)
    return _with_biases(kernels)


def _with_biases(kernels: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Add to every kernel its bias, as long as its last axis."""
    shapes = {}
    for name, shape in kernels.items():
        shapes[f"{name}/kernel"] = shape
        shapes[f"{name}/bias"] = shape[-1:]
    return shapes
