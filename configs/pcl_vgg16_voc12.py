"""PCL with VGG16 on VOC 2012: mAP 40.6, CorLoc 63.2 (Tang et al. 2018, Table 3; released solver, step at 60k).

The length after the step is not published; 20k updates follow it here.
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "pcl"
    config.train.num_steps = 80_000
    config.optim.decay_steps = (60_000,)
    config.eval.resize = "long"
    config.data.year = "2012"
    config.proposals.path = "data/proposals/voc2012_selective_search.npz"
    config.eval.ap = "area"  # the 2010-and-later metric
    return config
