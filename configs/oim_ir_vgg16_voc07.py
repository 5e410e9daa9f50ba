"""OIM with the instance-reweighted loss, VGG16, VOC 2007: mAP 50.1, CorLoc 67.2 (Lin et al. 2020, Tables 1 and 2).

Table 5, beta: --config.method.beta=0.5 (48.0), 0.8 (46.3). Users of the released code report 46 to 47.3 mAP.
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "oim"
    config.method.alpha = ((0, 5.0), (70_000, 2.0))
    config.method.reweight = "paper"
    config.method.beta = 0.2
    config.train.num_steps = 90_000
    config.optim.momentum_reset_steps = (70_000,)  # the released second stage starts a fresh solver
    return config
