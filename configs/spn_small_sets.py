"""What SPN on the small sets shares: a frozen backbone, one new convolution, SPN and its CAM baseline as variants."""

from ml_collections import ConfigDict

SOLVERS = {"spn": "walk", "spn_stationary": "stationary", "cam": "uniform"}


def spn_small_set(variant: str, num_steps: int) -> ConfigDict:
    """Return the settings of one variant that do not depend on the data set.

    `spn` walks, `spn_stationary` takes the stationary distribution instead, `cam` is the same network with a uniform
    proposal map: global average pooling.
    """
    config = ConfigDict()
    config.seed = 0
    config.method = dict(name="spn", activation="sigmoid")
    config.network = dict(extra_channels=256, extra_groups=2, dropout_rate=0.5)
    config.soft_proposal = dict(solver=SOLVERS[variant])

    config.data = dict(reader="voc", train_split="trainval", test_split="test", difficult="drop")

    config.train = ConfigDict()
    config.train.num_steps = num_steps
    config.train.resize = "short"
    config.train.loader = "tf"
    config.train.cache_features = True  # the backbone is frozen: every view's map is computed once

    config.optim = ConfigDict()
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.decay_steps = (num_steps * 7 // 10,)
    config.optim.decay_factor = 0.1
    config.optim.warmup_steps = 20
    config.optim.weight_decay = 1e-4

    config.log = ConfigDict()
    config.log.every = 50
    config.log.checkpoint_every = num_steps // 5
    config.log.milestones_every = num_steps // 5

    config.eval = ConfigDict()
    config.eval.resize = "short"
    config.eval.corloc_resize = "short"
    config.eval.corloc_split = "trainval"
    config.eval.ap = "area"
    config.localization = dict(min_side_px=0.0)
    return config
