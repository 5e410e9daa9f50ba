"""What the small sets share: the six methods as variants, a frozen backbone, one small neck, a laptop's schedule."""

from ml_collections import ConfigDict

METHODS = {
    "wsddn": dict(name="wsddn"),
    "oicr": dict(name="oicr"),
    "pcl": dict(name="pcl"),
    "mist": dict(name="mist", first_stage_scale=1.0),
    "oim": dict(name="oim", reweight="off"),
    "oim_ir": dict(name="oim", reweight="paper", beta=0.2),
}


def small_set(variant: str, num_steps: int) -> ConfigDict:
    """Return the settings of one method, `wsddn` to `oim_ir`, that do not depend on the data set."""
    config = ConfigDict()
    config.seed = 0
    config.method = ConfigDict(METHODS[variant])
    if config.method.name == "oim":  # the paper's 70k of 90k updates, to scale
        config.method.alpha = ((0, 5.0), (num_steps * 7 // 9, 2.0))
    config.network = ConfigDict()
    config.network.num_stages = 0 if variant == "wsddn" else 3
    config.network.roi_size = 7
    config.network.pooling = "max"
    config.neck = ConfigDict(dict(dims=(256, 256), dropout_rate=0.5, log_input=True))

    config.data = ConfigDict()
    config.data.reader = "voc"
    config.data.train_split = "trainval"
    config.data.test_split = "test"
    config.data.difficult = "drop"
    config.proposals = ConfigDict()

    config.train = ConfigDict()
    config.train.num_steps = num_steps
    config.train.accumulate = 1
    config.train.resize = "short"
    config.train.loader = "tf"
    config.train.cache_features = True  # the backbone is frozen: every view's map is computed once

    config.optim = ConfigDict()
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-4
    config.optim.decay_steps = (num_steps * 7 // 10,)
    config.optim.decay_factor = 0.1
    config.optim.warmup_steps = 50
    config.optim.weight_decay = 1e-4
    config.optim.groups = ((r"midn|refine", 3.0, 1.0),)

    config.log = ConfigDict()
    config.log.every = 50
    config.log.checkpoint_every = num_steps // 3
    config.log.milestones_every = num_steps // 3
    config.log.pictures_every = num_steps // 3
    config.log.num_pictures = 8

    config.eval = ConfigDict()
    config.eval.resize = "short"
    config.eval.corloc_resize = "short"
    config.eval.corloc_split = "trainval"
    config.eval.top_k = 100
    config.eval.average_per_image = None
    config.eval.nms_thr = 0.3
    config.eval.ap = "area"
    return config
