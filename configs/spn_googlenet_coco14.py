"""SP-GoogLeNet-GAP on COCO 2014, train to val: image mAP 56.0; `cam`, without proposals, 54.4 (Zhu et al. 2017, Table 6).

The paper starts from its own ImageNet training (configs/spn_googlenet_ilsvrc.py); this file from torchvision's
weights. To do as the paper did, convert the checkpoint of that run:
--config.backbone.weights=weights/spn_googlenet_ilsvrc.npz
"""

from configs.spn import COCO14_TRAIN, SOLVERS, googlenet, on_coco14, spn


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn or cam."""
    config = spn(googlenet(), size=224, images=COCO14_TRAIN, epochs=50, micro_batch=16)
    config.network.extra_groups = 1
    config.soft_proposal.solver = SOLVERS[variant]
    return on_coco14(config)
