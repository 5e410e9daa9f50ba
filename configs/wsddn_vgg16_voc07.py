"""WSDDN with VGG16 on VOC 2007: mAP 34.8, CorLoc 53.5 (Bilen and Vedaldi 2016, as cited in OIM's Table 6).

The network and schedule of the OICR family without its refinement heads, so that the rows of one table differ in one
thing. The original recipe, in addition to EdgeBoxes proposals with scores, is a matter of overrides:
--config.method.score_gate=10 --config.method.det_temperature=2 --config.method.spatial_weight=1e-4
--config.method.mil_reduction=sum --config.data.difficult=ignore --config.backbone.dilated=False
--config.backbone.frozen="()" --config.proposals.dedup_stride=1 --config.proposals.min_side_px=20
--config.train.accumulate=1 --config.train.resize=long --config.eval.resize=long --config.eval.merge=sum
--config.eval.score_thr=1e-3 --config.eval.nms_thr=0.4 --config.eval.ap=area
One image per update, 10 epochs at 1e-5 and 10 at 1e-6, all layers at one rate, biases without decay:
--config.train.num_steps=100220 --config.optim.learning_rate=1e-5 --config.optim.decay_steps="(50110,)"
--config.optim.groups="(('bias',1.0,0.0),)"
Without the dilation the stride is 16; dedup_stride=1 merges exact duplicates only, since equal cells may differ in
objectness. Boxes are projected as OICR does (docs/methods.md), and the mean that is subtracted from pixels is Caffe's
where the original takes the training set's.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    return presets.on_voc(presets.vgg16_detector("wsddn"))
