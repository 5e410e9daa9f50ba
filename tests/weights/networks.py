"""Random state dicts of the right names and shapes, and VGG16 and SqueezeNet written in plain torch."""

import numpy as np
import torch
import torch.nn.functional as F

VGG = [(3, 64), (64, 64), "M", (64, 128), (128, 128), "M"]
VGG += [(128, 256), (256, 256), (256, 256), "M", (256, 512), (512, 512), (512, 512), "M"]
VGG += [(512, 512)] * 3
VGG_NAMES = "1_1 1_2 2_1 2_2 3_1 3_2 3_3 4_1 4_2 4_3 5_1 5_2 5_3".split()
FIRES = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
FIRES += [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
FIRE_POSITIONS = (3, 4, 6, 7, 9, 10, 11, 12)


def conv(rng, width, channels, side):
    """Draw a kernel [out, in, side, side] that keeps activations alive, and a bias."""
    scale = (2 / (width * side**2)) ** 0.5
    kernel = rng.standard_normal((channels, width, side, side), np.float32) * np.float32(scale)
    return kernel, rng.standard_normal(channels, np.float32) * np.float32(0.1)


def vgg_blobs(seed=0):
    """Return Caffe's names and layout: conv1_1 -> (kernel [out, in, 3, 3], bias)."""
    rng = np.random.default_rng(seed)
    widths = [w for w in VGG if w != "M"]
    return {f"conv{n}": conv(rng, *w, 3) for n, w in zip(VGG_NAMES, widths, strict=True)}


def vgg_state(blobs):
    """Return torchvision's names for them."""
    state, position, blobs = {}, 0, iter(blobs.values())
    for layer in VGG:
        if layer == "M":
            position += 1
            continue
        kernel, bias = next(blobs)
        state[f"features.{position}.weight"] = torch.from_numpy(kernel)
        state[f"features.{position}.bias"] = torch.from_numpy(bias)
        position += 2
    return state


def vgg_forward(x, blobs, dilated):
    """Run VGG16 without pool5 (and, dilated, without pool4) on [b, 3, H, W]; pooling rounds up."""
    for name, (kernel, bias) in blobs.items():
        dilation = 2 if dilated and name.startswith("conv5") else 1
        x = F.conv2d(
            x, torch.from_numpy(kernel), torch.from_numpy(bias), padding=dilation, dilation=dilation
        )
        x = F.relu(x)
        if name in ("conv1_2", "conv2_2", "conv3_3") or (name == "conv4_3" and not dilated):
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    return x


def squeezenet_layers(seed=0):
    """Return torchvision's names for SqueezeNet 1.1's convolutions: features.3.squeeze -> (kernel, bias)."""
    rng = np.random.default_rng(seed)
    layers = {"features.0": conv(rng, 3, 64, 3)}
    for position, (width, squeeze, expand) in zip(FIRE_POSITIONS, FIRES, strict=True):
        layers[f"features.{position}.squeeze"] = conv(rng, width, squeeze, 1)
        layers[f"features.{position}.expand1x1"] = conv(rng, squeeze, expand, 1)
        layers[f"features.{position}.expand3x3"] = conv(rng, squeeze, expand, 3)
    layers["classifier.1"] = conv(rng, 512, 10, 1)
    return layers


def squeezenet_forward(x, layers, ceil_mode):
    """Run SqueezeNet 1.1 up to fire9 on [b, 3, H, W]."""

    def apply(name, x, **options):
        kernel, bias = layers[name]
        return F.relu(F.conv2d(x, torch.from_numpy(kernel), torch.from_numpy(bias), **options))

    x = apply("features.0", x, stride=2)
    x = F.max_pool2d(x, 3, 2, ceil_mode=ceil_mode)
    for position in FIRE_POSITIONS:
        s = apply(f"features.{position}.squeeze", x)
        x = torch.cat(
            [
                apply(f"features.{position}.expand1x1", s),
                apply(f"features.{position}.expand3x3", s, padding=1),
            ],
            1,
        )
        if position in (4, 7):
            x = F.max_pool2d(x, 3, 2, ceil_mode=ceil_mode)
    return x


def torchvision_input(image):
    """RGB uint8 [b, H, W, 3] -> [b, 3, H, W] as torchvision's transforms make it."""
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None]


def caffe_input(image, mean):
    """RGB uint8 [b, H, W, 3] -> [b, 3, H, W], blue first, minus the mean."""
    x = torch.from_numpy(image[..., [2, 1, 0]].astype(np.float32) - np.float32(mean))
    return x.permute(0, 3, 1, 2)
