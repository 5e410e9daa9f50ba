"""OIM without the instance-reweighted loss, VGG16, VOC 2007: mAP 48.2 (Lin et al. 2020, Table 1).

Rows of the paper's tables as overrides. Table 5, alpha pairs: --config.method.alpha="((0,1.),(70000,1.))" and so on.
Table 6: --config.method.graphs=spatial (42.2), --config.method.graphs=appearance (46.7).
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "oim"
    config.method.alpha = ((0, 5.0), (70_000, 2.0))
    config.method.reweight = "off"
    config.method.beta = 0.2
    config.train.num_steps = 90_000
    config.optim.momentum_reset_steps = (70_000,)  # the released second stage starts a fresh solver
    return config
