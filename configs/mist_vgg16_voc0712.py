"""MIST with VGG16 trained on VOC 2007 and 2012, tested on 2007: mAP 58.1 with its dropout block (Ren et al. 2020,
released model zoo).

As configs/mist_vgg16_voc07.py, whose schedule stands in: the zoo does not state another.
"""

from configs import mist_vgg16_voc07


def get_config():
    """Return the configuration."""
    config = mist_vgg16_voc07.get_config()
    config.data.year = "07+12"
    config.data.test_year = "2007"
    config.proposals.path = "data/proposals/voc0712_selective_search.npz"
    return config
