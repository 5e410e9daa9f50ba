"""SPN with VGG16 on COCO 2014, train to val: pointing with prediction, mAP 55.3 (Zhu et al. 2017, Table 3)."""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.spn("vgg16", size=224, images=presets.COCO14_TRAIN, epochs=20, micro_batch=16)
    return presets.on_coco(config, "2014", "train2014", "val2014")
