"""SPN with VGG16 on COCO 2014, train to val: pointing with prediction, mAP 55.3 (Zhu et al. 2017, Table 3)."""

from configs.spn import COCO14_TRAIN, on_coco14, spn, vgg16


def get_config():
    """Return the configuration."""
    return on_coco14(spn(vgg16(), size=224, images=COCO14_TRAIN, epochs=20, micro_batch=16))
