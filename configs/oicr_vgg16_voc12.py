"""OICR with VGG16 on VOC 2012: mAP 37.9, CorLoc 62.1 (Tang et al. 2017, Table 4).

The released code does not state its VOC 2012 schedule; PCL's (first step at 60k) stands in.
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "oicr"
    config.eval.resize = "long"
    config.train.num_steps = 90_000
    config.optim.decay_steps = (60_000,)
    config.data.year = "2012"
    config.proposals.path = "data/proposals/voc2012_selective_search.npz"
    config.eval.ap = "area"  # the 2010-and-later metric
    return config
