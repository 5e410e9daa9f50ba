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

CNN_S_CONVS = {  # layer: (cells per side, input channels, output channels)
    "conv1": (7, 3, 96),
    "conv2": (5, 96, 256),
    "conv3": (3, 256, 512),
    "conv4": (3, 512, 512),
    "conv5": (3, 512, 512),
}

GOOGLENET_CONVS = {"conv1": (7, 3, 64), "conv2": (1, 64, 64), "conv3": (3, 64, 192)}  # likewise
GOOGLENET_INCEPTIONS = {  # module: channels of branch1, branch2_reduce, branch2, branch3_reduce, branch3, branch4
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
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


def cnn_s_shapes() -> dict[str, tuple[int, ...]]:
    """Return parameter path -> shape for VGG-CNN-S's convolutions."""
    return _with_biases({name: _square(*sizes) for name, sizes in CNN_S_CONVS.items()})


def googlenet_shapes(*, branch3_kernel: int) -> dict[str, tuple[int, ...]]:
    """Return parameter path -> shape for GoogLeNet up to inception5b, for one of the kernels of its third branches."""
    kernels = {name: _square(*sizes) for name, sizes in GOOGLENET_CONVS.items()}
    width = GOOGLENET_CONVS["conv3"][-1]
    for name, (one, two_reduce, two, three_reduce, three, four) in GOOGLENET_INCEPTIONS.items():
        kernels[f"{name}/branch1"] = _square(1, width, one)
        kernels[f"{name}/branch2_reduce"] = _square(1, width, two_reduce)
        kernels[f"{name}/branch2"] = _square(3, two_reduce, two)
        kernels[f"{name}/branch3_reduce"] = _square(1, width, three_reduce)
        kernels[f"{name}/branch3"] = _square(branch3_kernel, three_reduce, three)
        kernels[f"{name}/branch4"] = _square(1, width, four)
        width = one + two + three + four
    return _with_biases(kernels)


def _square(side: int, inputs: int, outputs: int) -> tuple[int, int, int, int]:
    return (side, side, inputs, outputs)


def _with_biases(kernels: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Add to every kernel its bias, as long as its last axis."""
    shapes = {}
    for name, shape in kernels.items():
        shapes[f"{name}/kernel"] = shape
        shapes[f"{name}/bias"] = shape[-1:]
    return shapes
