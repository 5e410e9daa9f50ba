"""Configurations of published numbers: what several of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from wsod_jax.errors import ConfigError

VOC07_TRAINVAL, VOC12_TRAIN, COCO14_TRAIN, ILSVRC_TRAIN = 5_011, 5_717, 82_081, 1_281_167  # images
VOC10_TRAINVAL, VOC12_TRAINVAL, COCO17_TRAIN = 10_103, 11_540, 118_287

CAFFE_MEAN = (103.939, 116.779, 123.68)  # BGR, of the released VGG and SqueezeNet weights

REGRESSION = dict(weights=(10.0, 10.0, 5.0, 5.0), beta=1.0)  # MIST's, as released
_SPN_BACKBONES = {  # for 14x14, 14x14 and 17x17 cells at 224 pixels
    "vgg16": dict(name="vgg16", preprocessing="caffe", mean=CAFFE_MEAN, dilated=False, frozen=()),
    "googlenet": dict(name="googlenet", ends_at="inception4e", frozen=()),
    "cnn_s": dict(name="cnn_s", frozen=()),
}
_SPN_WEIGHTS = {  # ImageNet: Caffe's, torchvision's, Caffe's
    "vgg16": "weights/vgg16_caffe.npz",
    "googlenet": "weights/googlenet.npz",
    "cnn_s": "weights/cnn_s.npz",
}

Value = TypeVar("Value")


def of_variant(variant: str, table: Mapping[str, Value]) -> Value:
    """Return the entry of a configuration's variant, the part after the colon in `--config FILE:variant`.

    Args:
      variant: name of the variant.
      table: variant -> entry.

    Raises:
      ConfigError: if there is no such variant; the message lists those that exist.
    """
    if variant not in table:
        raise ConfigError(
            f"The configuration has no variant {variant!r}; its variants are {', '.join(table)}. "
            "Give one after the colon, as in --config FILE:variant."
        )
    return table[variant]


# ---------------------------------------------------------------- detectors with proposals, VGG16


def vgg16_detector(method: str) -> ConfigDict:
    """Return the settings that the released Caffe code of OICR, PCL and OIM has in common, without the data.

    VGG16 at stride 8, three refinement heads, five scales, ten views; two images per update, 40k updates at 1e-3 and
    30k at 1e-4.

    Args:
      method: "wsddn" (without refinement heads), "oicr", "pcl", "mist" or "oim".
    """
    config = ConfigDict()
    config.seed = 0
    config.method = dict(
        name=method, roi_size=7, pooling="max", det_temperature=1.0, score_gate=0.0
    )
    config.method.box_head = dict(dims=(4096, 4096), dropout_rate=0.5, dtype="float32")
    if method != "wsddn":
        config.method.num_stages = 3
    config.backbone = dict(
        name="vgg16", preprocessing="caffe", frozen=("conv1", "conv2"), dtype="float32"
    )
    config.data = ConfigDict()
    config.proposals = dict(max_proposals=4096, dedup_stride=8)

    scales = (480, 576, 688, 864, 1200)
    config.train = dict(scales=scales, resize="short", max_long=2000, flip=True)
    config.train.init_from = ("weights/vgg16_caffe.npz",)  # ImageNet, fc6 and fc7 included
    config.train.num_steps = 70_000
    config.train.micro_batch = 1  # images per forward pass, over all devices
    config.train.accumulate = 2  # forward passes per update: a batch of 2

    config.optim = dict(name="sgd", update_rule="caffe", momentum=0.9, weight_decay=5e-4)
    config.optim.update(learning_rate=1e-3, decay_steps=(40_000,), decay_factor=0.1)
    config.optim.update(warmup_steps=0, momentum_reset_steps=())
    # (pattern on the parameter's path, learning-rate factor, weight-decay factor): first match wins
    config.optim.groups = (
        (r"(midn|refine).*kernel", 10.0, 1.0),
        (r"(midn|refine).*bias", 20.0, 0.0),
        (r"bias", 2.0, 0.0),
    )

    config.log = dict(log_interval=20, checkpoint_interval=5_000, keep_period=10_000)
    config.log.update(image_interval=5_000, num_images=8)

    config.eval = dict(scales=scales, flips=(False, True), max_long=2000, micro_batch=1)
    config.eval.resize = "short"
    config.eval.update(top_k=100, average_per_image=40, nms_thr=0.3)
    return config


def oim_vgg16(reweight: str) -> ConfigDict:
    """Return OIM's settings: alpha 5 for 70k updates, then 2 for 20k with fresh momentum, as the release's two runs.

    The learning rate is 1e-3 for 40k updates and 1e-4 for the remaining 50k.

    Args:
      reweight: "paper" with the instance-reweighted loss, "off" without.
    """
    config = vgg16_detector("oim")
    config.method.alpha = ((0, 5.0), (70_000, 2.0))
    config.method.reweight = reweight
    config.method.beta = 0.2
    config.train.num_steps = 90_000
    config.optim.momentum_reset_steps = (70_000,)  # the second run starts a fresh solver
    return config


def mist_vgg16(
    *,
    batch_size: int,
    learning_rate: float,
    num_steps: int,
    decay_steps: tuple[int, ...],
    warmup_steps: int,
) -> ConfigDict:
    """Return the settings of MIST's released code: six scales in training and at test, heads that regress boxes, the
    best 100 boxes of an image. Each set has its schedule; configs/mist_vgg16_voc07.py lists what is not here.

    Args:
      batch_size: images per update, one per forward pass.
      learning_rate: rate after the warm-up.
      num_steps: updates.
      decay_steps: updates at which the rate falls to a tenth.
      warmup_steps: updates of the linear warm-up, from a third of the rate.
    """
    config = vgg16_detector("mist")
    config.method.first_stage_scale = 3.0
    config.method.regression = REGRESSION
    config.train.num_steps = num_steps
    config.train.accumulate = batch_size
    config.train.scales = (480, 576, 688, 864, 1000, 1200)
    config.optim.learning_rate = learning_rate
    config.optim.decay_steps = decay_steps
    config.optim.warmup_steps = warmup_steps
    config.optim.weight_decay = 1e-4
    config.optim.update_rule = "pytorch"
    config.optim.groups = ((r"bias", 2.0, 0.0),)
    config.eval.scales = (480, 576, 688, 864, 1000, 1200)
    config.eval.average_per_image = None
    config.eval.max_per_image = 100
    return config


# ---------------------------------------------------------------- WS-JDS

WS_JDS = {  # the rows of its Table 1
    "wsddn": dict(name="wsddn", mil_reduction="sum", score_gate=1.0),
    "parallel": dict(name="ws_jds", guidance="none"),
    "to_segmentation": dict(name="ws_jds", guidance="to_segmentation"),
    "to_detection": dict(name="ws_jds", guidance="to_detection"),
    "ws_jds": dict(name="ws_jds", guidance="both"),
    "released": dict(
        name="ws_jds", map_seed="scores", boundary_loss="released", entropy_weight=0.1
    ),
}


def ws_jds_vgg16(variant: str, num_images: int, epochs: int = 30) -> ConfigDict:
    """Return WS-JDS's settings, without the data: the paper's schedule, and the released code where it is silent.

    128 images per update; the rate is 1e-3, and a tenth of it for the last third of the epochs. The whole backbone is
    frozen. Guidance ends after 5/6 of the updates.

    Args:
      variant: one of `WS_JDS`; they differ in nothing else, but for "released", which runs 12 epochs at one rate.
      num_images: images that are learned from.
      epochs: how often each of them is shown.
    """
    epochs = 12 if variant == "released" else epochs
    num_steps = num_images * epochs // 128
    config = vgg16_detector("wsddn")
    box_head, config.method = config.method.box_head, ConfigDict(of_variant(variant, WS_JDS))
    config.method.update(roi_size=7, pooling="max", box_head=box_head)
    if config.method.name == "ws_jds":
        config.method.guidance_steps = num_steps * 5 // 6
        config.eval.masks = dict(semantic_scales=(688,), semantic_flips=(False,), crf={})
    config.backbone.update(mean=CAFFE_MEAN, frozen=("conv",))
    config.proposals.update(max_proposals=2048, dedup_stride=1, min_side_px=20)
    config.train.update(num_steps=num_steps, accumulate=128, crop=(0.9, 0.9), jitter="hsv")
    config.optim.decay_steps = () if variant == "released" else (round(num_steps * 2 / 3),)
    config.optim.groups = ((r"bias", 2.0, 0.0),)
    interval = num_steps // 10
    config.log.update(checkpoint_interval=interval, keep_period=2 * interval, image_interval=0)
    config.eval.update(merge="sum", nms_thr=0.5, score_thr=1e-9, average_per_image=None)
    config.eval.max_per_image = 100
    return config


# ---------------------------------------------------------------- SPN and CAM as published


def spn(
    backbone: str,
    *,
    size: int,
    images: int,
    epochs: int,
    micro_batch: int,
    batch_size: int = 16,
) -> ConfigDict:
    """Return SPN's settings, without the data.

    They follow the paper, and the released code where the paper is silent: one learning rate for all layers, none
    frozen, images warped to squares, a grouped 3x3 convolution of 1024 channels after the backbone. New layers are
    drawn as that code's framework draws them.

    Args:
      backbone: "vgg16", "googlenet" or "cnn_s".
      size: side of the square images, in pixels.
      images: how many images the training set has.
      epochs: how often each of them is shown.
      micro_batch: images per forward pass, over all devices.
      batch_size: images per update.
    """
    num_steps = images * epochs // batch_size
    config = ConfigDict()
    config.seed = 0
    config.method = dict(
        name="spn", activation="sigmoid", extra_channels=1024, extra_groups=2, dropout_rate=0.5
    )
    config.method.soft_proposal = dict(
        solver="walk", epsilon_rule="side", epsilon_factor=0.15, num_steps=20, tolerance=1e-4
    )
    config.backbone = _SPN_BACKBONES[backbone]
    config.data = ConfigDict()

    config.train = dict(scales=(size,), resize="warp", crop_margin=30, flip=True)
    config.train.init_from = (_SPN_WEIGHTS[backbone],)
    config.train.num_steps = num_steps
    config.train.micro_batch = micro_batch
    config.train.accumulate = batch_size // micro_batch

    config.optim = dict(name="sgd", update_rule="pytorch", momentum=0.9, weight_decay=5e-4)
    config.optim.update(learning_rate=1e-2, decay_steps=(num_steps // 2,), decay_factor=0.1)

    config.log = dict(log_interval=20)
    config.log.checkpoint_interval = config.log.keep_period = num_steps // 10

    config.eval = dict(scales=(size,), flips=(False,), resize="warp")
    config.eval.update(micro_batch=micro_batch, ap="area")
    config.eval.maps = dict(boxes="tightest", threshold=1.0, pointing_px=15.0, prediction_px=18.0)
    return config


# ---------------------------------------------------------------- published data sets


def on_voc(
    config: ConfigDict,
    year: str = "2007",
    train_split: str = "trainval",
    test_split: str = "test",
) -> ConfigDict:
    """Let a published configuration, in place, train and test on PASCAL VOC.

    Args:
      config: from `vgg16_detector`, `oim_vgg16`, `mist_vgg16` or `spn`.
      year: "2007", "2012" or "07+12", which is tested on 2007.
      train_split: of images that are learned from, and on which CorLoc is measured.
      test_split: of images on which average precision is measured.

    Returns:
      `config`. Average precision is the 11-point one on VOC 2007, the area under the curve on VOC 2010 and 2012.
    """
    config.data = dict(
        reader="voc",
        root="data/VOCdevkit",
        year=year,
        train_split=train_split,
        test_split=test_split,
        difficult="drop",  # difficult objects make no image label
    )
    if year == "07+12":
        config.data.test_year = "2007"
    if "proposals" in config:
        name = f"voc{year.replace('+', '')}"
        config.proposals.path = f"data/proposals/{name}_selective_search.npz"
    if "maps" in config.eval:
        config.eval.maps.boxes = "components"
    config.eval.ap = "area" if year in ("2010", "2012") else "11point"
    resize = "warp" if config.eval.resize == "warp" else "long"
    config.eval.passes = dict(corloc=corloc_pass(train_split, resize))
    return config


def corloc_pass(split: str, resize: str | None = None) -> dict[str, object]:
    """Return a pass of `eval.passes` that measures CorLoc: the best box of every class, whatever its score."""
    changes = {} if resize is None else {"resize": resize}
    return dict(split=split, evaluators=("corloc",), top_k=1, score_thr=-1.0, **changes)


def on_coco(config: ConfigDict, year: str, train_split: str, test_split: str) -> ConfigDict:
    """Let a published configuration, in place, train and test on COCO; proposals are MCG's.

    Args:
      config: from `vgg16_detector`, `oim_vgg16`, `mist_vgg16` or `spn`.
      year: "2014" or "2017", for the name of the proposals' file.
      train_split: of images that are learned from.
      test_split: of images on which average precision is measured.

    Returns:
      `config`. CorLoc, which nobody reports on COCO, is not measured.
    """
    config.data = dict(
        reader="coco", root="data/coco", train_split=train_split, test_split=test_split
    )
    config.eval.ap = "area"
    if "proposals" in config:
        config.proposals.path = f"data/proposals/coco{year}_mcg.npz"
        config.eval.iou_thrs = "sweep"
    return config
