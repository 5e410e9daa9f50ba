"""SPN with VGG-CNN-S on VOC 2007: pointing 81.8, difficult 66.7 (Zhu et al. 2017, Table 2).

The extra convolution of the released VGG16 network follows conv5 here too; the release has no CNN-S.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.spn(
        "cnn_s", size=224, images=presets.VOC07_TRAINVAL, epochs=20, micro_batch=16
    )
    return presets.on_voc(config)
