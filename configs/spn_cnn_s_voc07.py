"""SPN with VGG-CNN-S on VOC 2007: pointing 81.8, difficult 66.7 (Zhu et al. 2017, Table 2).

The extra convolution of the released VGG16 network follows conv5 here too; the release has no CNN-S.
"""

from configs.spn import VOC07_TRAINVAL, cnn_s, on_voc07, spn


def get_config():
    """Return the configuration."""
    return on_voc07(spn(cnn_s(), size=224, images=VOC07_TRAINVAL, epochs=20, micro_batch=16))
