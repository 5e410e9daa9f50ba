"""OIM with the instance-reweighted loss, VGG16, VOC 2012 trainval to test: mAP 45.3, CorLoc 67.1 (Lin et al. 2020,
Tables 3 and 4). Test boxes are not public: evaluation writes the predictions for the challenge server.
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
    config.data.year = "2012"
    config.proposals.path = "data/proposals/voc2012_selective_search.npz"
    config.eval.ap = "area"  # the 2010-and-later metric
    return config
