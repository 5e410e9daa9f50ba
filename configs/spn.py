"""The settings that SPN's published numbers share; each config file states the rest.

Settings follow the paper, and the released code where the paper is silent: one learning rate for all layers, none
frozen, images warped to squares, a grouped 3x3 convolution of 1024 channels after the backbone. New layers are drawn
as that code's framework draws them.
"""

from ml_collections import ConfigDict

EPSILON = 0.15  # of the map's side


def spn(
    backbone: dict, *, size: int, images: int, epochs: int, batch_size: int = 16, micro_batch: int
) -> ConfigDict:
    """Return a network's settings for training on `images` images of `size` by `size` pixels, `epochs` times."""
    num_steps = images * epochs // batch_size
    config = ConfigDict()
    config.seed = 0
    config.method = dict(name="spn", activation="sigmoid")
    config.network = dict(extra_channels=1024, extra_groups=2, dropout_rate=0.5)
    config.soft_proposal = dict(
        solver="walk", epsilon_rule="side", epsilon_factor=EPSILON, num_steps=20, tolerance=1e-4
    )
    config.backbone = backbone
    config.data = ConfigDict()

    config.train = ConfigDict()
    config.train.num_steps = num_steps
    config.train.micro_batch = micro_batch
    config.train.accumulate = batch_size // micro_batch
    config.train.scales = (size,)
    config.train.resize = "warp"
    config.train.crop_margin = 30
    config.train.flip = True
    config.train.loader = "tf"

    config.optim = ConfigDict()
    config.optim.name = "sgd"
    config.optim.update_rule = "pytorch"
    config.optim.learning_rate = 1e-2
    config.optim.decay_steps = (num_steps // 2,)
    config.optim.decay_factor = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4

    config.log = ConfigDict()
    config.log.every = 20
    config.log.checkpoint_every = num_steps // 10
    config.log.milestones_every = num_steps // 10

    config.eval = ConfigDict()
    config.eval.scales = (size,)
    config.eval.flips = (False,)
    config.eval.resize = "warp"
    config.eval.corloc_resize = "warp"
    config.eval.corloc_split = None
    config.eval.micro_batch = micro_batch
    config.eval.ap = "area"
    config.localization = dict(
        boxes="tightest", threshold=1.0, pointing_px=15.0, prediction_px=18.0
    )
    return config


def vgg16() -> dict:
    """Return VGG16 with a map of 14x14 cells at 224 pixels, from Caffe's ImageNet weights."""
    return dict(
        name="vgg16",
        weights="weights/vgg16_caffe.npz",
        pixels="caffe",
        mean=(103.939, 116.779, 123.68),
        dilated=False,
        frozen=(),
    )


def googlenet() -> dict:
    """Return GoogLeNet up to inception4e, 14x14 cells at 224 pixels, from torchvision's ImageNet weights."""
    return dict(name="googlenet", weights="weights/googlenet.npz", ends_at="inception4e", frozen=())


def cnn_s() -> dict:
    """Return VGG-CNN-S, 17x17 cells at 224 pixels, from Caffe's ImageNet weights."""
    return dict(name="cnn_s", weights="weights/cnn_s.npz", frozen=())


def on_voc07(config: ConfigDict) -> ConfigDict:
    """Let a configuration, in place, train on VOC 2007 trainval and test on VOC 2007 test."""
    config.data = dict(
        reader="voc",
        root="data/VOCdevkit",
        year="2007",
        train_split="trainval",
        test_split="test",
        difficult="drop",
    )
    config.eval.ap = "11point"
    config.eval.corloc_split = "trainval"
    config.localization.boxes = "components"
    return config


def on_coco14(config: ConfigDict) -> ConfigDict:
    """Let a configuration, in place, train on COCO 2014 train and test on its validation set."""
    config.data = dict(
        reader="coco", root="data/coco", train_split="train2014", test_split="val2014"
    )
    return config


VOC07_TRAINVAL, VOC12_TRAIN, COCO14_TRAIN, ILSVRC_TRAIN = 5_011, 5_717, 82_081, 1_281_167  # images
SOLVERS = {"spn": "walk", "cam": "uniform"}
