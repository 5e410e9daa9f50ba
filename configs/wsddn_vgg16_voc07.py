"""WSDDN with VGG16 on VOC 2007: mAP 34.8, CorLoc 53.5 (Bilen and Vedaldi 2016, as cited in OIM's Table 6).

The network and schedule of the OICR family without its refinement heads, so that the rows of one table differ in one
thing. Part of the original's own recipe (EdgeBoxes gate, regulariser, stride 16, sum over classes, unknown labels) is a
matter of overrides, beside EdgeBoxes proposals with scores; its learning rates and epochs are not stated here:
--config.network.score_gate=10 --config.method.spatial_weight=1e-4 --config.network.det_temperature=2
--config.method.mil_reduction=sum --config.backbone.dilated=False --config.eval.nms_thr=0.4 --config.eval.ap=area
--config.data.difficult=ignore
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "wsddn"
    config.network.num_stages = 0
    return config
