"""OIM with the instance-reweighted loss, VGG16, VOC 2012 trainval to test: mAP 45.3, CorLoc 67.1 (Lin et al. 2020,
Tables 3 and 4). Test boxes are not public: evaluation writes the predictions for the challenge server.
"""

from configs import oim_ir_vgg16_voc07
from configs.voc_vgg16 import on_voc12


def get_config():
    """Return the configuration."""
    return on_voc12(oim_ir_vgg16_voc07.get_config())
