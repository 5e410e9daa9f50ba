"""WSDDN with VGG16 on VOC 2007: mAP 34.8, CorLoc 53.5 (Bilen and Vedaldi 2016, as cited in OIM's Table 6).

The network and schedule of the OICR family without its refinement heads, so that the rows of one table differ in one
thing. Most of the original's own recipe is a matter of overrides, beside EdgeBoxes proposals with scores:
--config.network.score_gate=10 --config.network.det_temperature=2 --config.method.spatial_weight=1e-4
--config.method.mil_reduction=sum --config.data.difficult=ignore --config.backbone.dilated=False
--config.backbone.frozen="()" --config.proposals.dedup_stride=1 --config.proposals.min_side_px=20
--config.train.accumulate=1 --config.train.resize=long --config.eval.resize=long --config.eval.merge=sum
--config.eval.score_thr=1e-3 --config.eval.nms_thr=0.4 --config.eval.ap=area
Without the dilation the stride is 16; dedup_stride=1 merges exact duplicates only, since equal cells may differ in
objectness. Learning rates and epochs are not stated here, and boxes are projected as OICR does (docs/methods.md).
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "wsddn"
    config.network.num_stages = 0
    return config
