"""SP-GoogLeNet-GAP on ILSVRC 2014: localization error 36.3, top-1 error 33.5, top-5 12.7 (Zhu et al. 2017, Tables 5, 6).

    wsod-jax train --config spn_googlenet_ilsvrc:spn --workdir runs/spn_ilsvrc
    wsod-jax evaluate --workdir runs/spn_ilsvrc

`cam` is GoogLeNet-GAP: top-1 error 35.0, top-5 13.2; localization error 48.1 as cited there.
90 epochs are the paper's; the batch of 256, the drops after 30 and 60 epochs and the start from torchvision's weights
are not: it says nothing of them. --config.train.init_from="()" draws all weights.
"""

from wsod_jax import presets


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn or cam (also spn_stationary, which is not published)."""
    config = presets.spn(
        "googlenet",
        size=224,
        images=presets.ILSVRC_TRAIN,
        epochs=90,
        micro_batch=256,
        batch_size=256,
    )
    config.method.activation = "softmax"
    config.method.extra_groups = 1
    config.method.soft_proposal.solver = presets.of_variant(variant, presets.SOLVERS)
    third = config.train.num_steps // 3
    config.optim.decay_steps = (third, 2 * third)
    config.data = dict(
        reader="image_folder", root="data/ILSVRC2014", train_split="train", test_split="val"
    )
    return config
