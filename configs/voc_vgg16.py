"""The settings that every published VGG16 number on PASCAL VOC shares; each config file states the rest.

Settings follow the released Caffe code of OICR, PCL and OIM, which agree on all of what is here.
"""

from ml_collections import ConfigDict


def voc_vgg16() -> ConfigDict:
    """Return the common VGG16 settings for VOC 2007: three refinement heads, five scales, ten views."""
    config = ConfigDict()
    config.seed = 0
    config.method = ConfigDict()
    config.network = ConfigDict(
        dict(num_stages=3, roi_size=7, pooling="max", det_temperature=1.0, score_gate=0.0)
    )
    # ImageNet VGG16 in Caffe's pixel convention; see scripts/convert_weights.py
    config.backbone = ConfigDict(
        dict(
            name="vgg16",
            weights="weights/vgg16_caffe.npz",
            pixels="caffe",
            frozen=("conv1", "conv2"),
            dtype="float32",
        )
    )
    config.neck = ConfigDict(dict(dims=(4096, 4096), dropout_rate=0.5, dtype="float32"))

    config.data = ConfigDict()
    config.data.reader = "voc"
    config.data.root = "data/VOCdevkit"
    config.data.year = "2007"
    config.data.train_split = "trainval"
    config.data.test_split = "test"
    config.data.difficult = "drop"  # difficult objects make no image label

    config.proposals = ConfigDict()
    config.proposals.path = "data/proposals/voc2007_selective_search.npz"
    config.proposals.max_proposals = 4096
    config.proposals.dedup_stride = 8

    config.train = ConfigDict()
    config.train.num_steps = 70_000
    config.train.micro_batch = 1  # images per forward pass, over all devices
    config.train.accumulate = 2  # forward passes per update: a batch of 2
    config.train.scales = (480, 576, 688, 864, 1200)
    config.train.resize = "short"
    config.train.max_long = 2000
    config.train.flip = True
    config.train.loader = "tf"

    config.optim = ConfigDict()
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-3
    config.optim.decay_steps = (40_000,)
    config.optim.decay_factor = 0.1
    config.optim.warmup_steps = 0
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.update_rule = "caffe"
    config.optim.momentum_reset_steps = ()
    # (pattern on the parameter's path, learning-rate factor, weight-decay factor): first match wins
    config.optim.groups = (
        (r"(midn|refine).*kernel", 10.0, 1.0),
        (r"(midn|refine).*bias", 20.0, 0.0),
        (r"bias", 2.0, 0.0),
    )

    config.log = ConfigDict()
    config.log.every = 20
    config.log.checkpoint_every = 5_000
    config.log.pictures_every = 5_000
    config.log.num_pictures = 8
    config.log.milestones_every = 10_000

    config.eval = ConfigDict()
    config.eval.scales = (480, 576, 688, 864, 1200)
    config.eval.flips = (False, True)
    config.eval.resize = "short"
    config.eval.corloc_resize = "long"
    config.eval.corloc_split = "trainval"
    config.eval.max_long = 2000
    config.eval.micro_batch = 1
    config.eval.top_k = 100
    config.eval.average_per_image = 40
    config.eval.nms_thr = 0.3
    config.eval.ap = "11point"
    return config


def on_voc12(config: ConfigDict) -> ConfigDict:
    """Turn a VOC 2007 configuration, in place, into one that trains and tests on VOC 2012."""
    config.data.year = "2012"
    config.proposals.path = "data/proposals/voc2012_selective_search.npz"
    config.eval.ap = "area"  # the 2010-and-later metric
    return config
