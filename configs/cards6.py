"""Playing cards: six classes, 363 photographs, SqueezeNet 1.1; one method per variant.

    python scripts/train.py --config configs/cards6.py:oim_ir --workdir runs/cards6/oim_ir

Data: the photographs of EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10
in VOC layout under data/cards6. Scales, schedule and proposal sizes were chosen on its train/val split alone;
docs/results.md has the table and the command that makes it.
"""

from configs.small_sets import small_set


def get_config(variant: str = "oim_ir"):
    """Return the configuration of one method: wsddn, oicr, pcl, mist, oim or oim_ir."""
    config = small_set(variant, num_steps=900)
    config.backbone = dict(
        name="squeezenet",
        weights="weights/squeezenet1_1.npz",
        pixels="caffe",
        mean=(103.939, 116.779, 123.68),
        stride=16,
        frozen=("conv", "fire"),
    )
    config.network.roi_size = 4
    config.data.root = "data/cards6/VOCdevkit/VOC2007"
    config.data.class_names = ("nine", "ten", "jack", "queen", "king", "ace")
    config.proposals.path = "data/proposals/cards6_selective_search.npz"
    config.proposals.max_proposals = 256
    config.proposals.min_side = (
        0.18  # of the image's shorter side: below the smallest card of the training images
    )
    config.proposals.dedup_stride = 16

    config.train.micro_batch = 2
    config.train.scales = (448,)
    config.train.max_long = 1000
    config.train.flip = False  # a mirrored rank is another shape
    config.eval.scales = (448,)
    config.eval.flips = (False,)
    config.eval.max_long = 1000
    config.eval.micro_batch = 2
    return config
