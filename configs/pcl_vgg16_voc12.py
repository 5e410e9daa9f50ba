"""PCL with VGG16 on VOC 2012: mAP 40.6, CorLoc 63.2 (Tang et al. 2018, Table 3; released solver, step at 60k).

The length after the step is not published; 20k updates follow it here.
"""

from configs import pcl_vgg16_voc07
from configs.voc_vgg16 import on_voc12


def get_config():
    """Return the configuration."""
    config = on_voc12(pcl_vgg16_voc07.get_config())
    config.train.num_steps = 80_000
    config.optim.decay_steps = (60_000,)
    return config
