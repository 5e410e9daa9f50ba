"""OICR with VGG16 on VOC 2007: mAP 41.2, CorLoc 60.6 (Tang et al. 2017, Tables 1 and 2; released solver).

The instance-reweighted loss alone (OIM, Table 6: 43.4) is --config.method.reweight=paper; the authors' later trick of
ignoring proposals far from every pseudo box is --config.method.ignore_iou_thr=0.1.
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "oicr"
    config.eval.resize = "long"  # the released test code scales the long side
    return config
