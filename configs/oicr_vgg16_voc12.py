"""OICR with VGG16 on VOC 2012: mAP 37.9, CorLoc 62.1 (Tang et al. 2017, Table 4).

The released code does not state its VOC 2012 schedule; PCL's (first step at 60k) stands in.
"""

from configs import oicr_vgg16_voc07
from configs.voc_vgg16 import on_voc12


def get_config():
    """Return the configuration."""
    config = on_voc12(oicr_vgg16_voc07.get_config())
    config.train.num_steps = 90_000
    config.optim.decay_steps = (60_000,)
    return config
