"""SP-GoogLeNet-GAP on COCO 2014, train to val: classification mAP 56.0; `cam`, without proposals, 54.4 (Zhu et al. 2017, Table 6).

The paper starts from its own ImageNet training; this file from torchvision's weights. To do as the paper did, start
from a run of configs/spn_googlenet_ilsvrc.py, whose new convolution is taken along and whose 1000 classes are not:
--config.train.init_from=runs/spn_ilsvrc --config.train.reinit=head
"""

from wsod_jax import presets


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn or cam (also spn_stationary, which is not published)."""
    config = presets.spn(
        "googlenet", size=224, images=presets.COCO14_TRAIN, epochs=50, micro_batch=16
    )
    config.method.extra_groups = 1
    config.method.soft_proposal.solver = presets.of_variant(variant, presets.SOLVERS)
    return presets.on_coco(config, "2014", "train2014", "val2014")
