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


CNN_S = {"conv1": (3, 96, 7), "conv2": (96, 256, 5), "conv3": (256, 512, 3)}
CNN_S |= {"conv4": (512, 512, 3), "conv5": (512, 512, 3)}


def cnn_s_blobs(seed=0):
    """Return VGG_CNN_S's names and layout: conv1 -> (kernel [out, in, rows, columns], bias)."""
    rng = np.random.default_rng(seed)
    return {name: conv(rng, *sizes) for name, sizes in CNN_S.items()}


def cnn_s_forward(x, blobs):
    """Run VGG-CNN-S up to conv5's ReLU on [b, 3, H, W]."""
    apply = biased(blobs)
    x = F.local_response_norm(apply("conv1", x, stride=2), 5, alpha=5e-4, beta=0.75, k=2)
    x = apply("conv2", F.max_pool2d(x, 3, 3, ceil_mode=True))
    x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    for name in ("conv3", "conv4", "conv5"):
        x = apply(name, x, padding=1)
    return x


# Channels: in, 1x1, 3x3 reduced, 3x3, third branch reduced, third branch, pooled.
INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
GOOGLENET_STEM = {"conv1": (3, 64, 7), "conv2": (64, 64, 1), "conv3": (64, 192, 3)}


def googlenet_sizes(branch3_kernel):
    """Return torchvision's place of every convolution of GoogLeNet -> (in, out, cells per side)."""
    sizes = dict(GOOGLENET_STEM)
    for name, (width, one, reduce2, two, reduce3, three, four) in INCEPTIONS.items():
        sizes |= {
            f"inception{name}.branch1": (width, one, 1),
            f"inception{name}.branch2.0": (width, reduce2, 1),
            f"inception{name}.branch2.1": (reduce2, two, 3),
            f"inception{name}.branch3.0": (width, reduce3, 1),
            f"inception{name}.branch3.1": (reduce3, three, branch3_kernel),
            f"inception{name}.branch4.1": (width, four, 1),
        }
    return sizes


def googlenet_blobs(seed=0):
    """Return (kernel, bias) of every convolution by torchvision's places, third branches 5x5."""
    rng = np.random.default_rng(seed)
    return {place: conv(rng, *sizes) for place, sizes in googlenet_sizes(5).items()}


def googlenet_state(seed=0):
    """Return torchvision's state dict, statistics of its batch normalization and a classifier included."""
    rng = np.random.default_rng(seed)
    state = {}
    for place, sizes in googlenet_sizes(3).items():
        channels = sizes[1]
        state[f"{place}.conv.weight"] = conv(rng, *sizes)[0]
        state[f"{place}.bn.weight"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        state[f"{place}.bn.bias"] = rng.normal(0, 0.2, channels).astype(np.float32)
        state[f"{place}.bn.running_mean"] = rng.normal(0, 0.2, channels).astype(np.float32)
        # Some variances are so small that the constant added to them counts.
        state[f"{place}.bn.running_var"] = rng.choice(
            [0.002, 0.5, 1.5], channels, p=[0.1, 0.5, 0.4]
        )
        state[f"{place}.bn.running_var"] = state[f"{place}.bn.running_var"].astype(np.float32)
        state[f"{place}.bn.num_batches_tracked"] = np.array(7)
    state["aux1.fc2.weight"], state["fc.bias"] = np.ones((10, 8)), np.zeros(10)
    return {name: torch.from_numpy(array) for name, array in state.items()}


def batch_normed(state):
    """Return the layers of a state dict as a function of (place, input, options)."""

    def apply(place, x, **options):
        x = F.conv2d(x, state[f"{place}.conv.weight"], **options)
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(state[f"{place}.bn.{part}"] for part in parts), eps=0.001))

    return apply


def biased(blobs):
    """Return layers with a bias as a function of (place, input, options)."""

    def apply(place, x, **options):
        kernel, bias = map(torch.from_numpy, blobs[place])
        return F.relu(F.conv2d(x, kernel, bias, **options))

    return apply


def googlenet_forward(x, apply, *, branch3_pad, pool4, lrn):
    """Run GoogLeNet on [b, 3, H, W]; return the outputs of modules 4e and 5b."""
    outputs = {}

    def norm(x):
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1) if lrn else x

    x = F.max_pool2d(apply("conv1", x, stride=2, padding=3), 3, 2, ceil_mode=True)
    x = norm(apply("conv3", apply("conv2", norm(x)), padding=1))
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    for name in INCEPTIONS:
        at = f"inception{name}.branch"
        pooled = F.max_pool2d(x, 3, 1, padding=1)
        branches = [
            apply(f"{at}1", x),
            apply(f"{at}2.1", apply(f"{at}2.0", x), padding=1),
            apply(f"{at}3.1", apply(f"{at}3.0", x), padding=branch3_pad),
            apply(f"{at}4.1", pooled),
        ]
        outputs[name] = x = torch.cat(branches, 1)
        if name in ("3b", "4e"):
            x = F.max_pool2d(x, 3 if name == "3b" else pool4, 2, ceil_mode=True)
    return outputs["4e"], outputs["5b"]


def inception_input(image):
    """RGB uint8 [b, H, W, 3] -> [b, 3, H, W] as torchvision's GoogLeNet makes it of standardized pixels."""
    x = torchvision_input(image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return x * (std / 0.5)[:, None, None] + ((mean - 0.5) / 0.5)[:, None, None]
