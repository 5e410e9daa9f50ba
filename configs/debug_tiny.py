"""A run of seconds on a few synthetic images, to see that everything works; no number means anything.

wsod-jax make_synthetic --out demo/data/debug --num_trainval 12 --num_test 6 --size 96
wsod-jax make_proposals --data demo/data/debug --split trainval test --out demo/data/debug_proposals.npz
wsod-jax train --config debug_tiny --workdir demo/debug
"""

from wsod_jax import presets


def get_config(variant: str = "oim_ir"):
    """Return the configuration of one method: wsddn, oicr, oicr_reg, pcl, mist, mist_reg, oim or oim_ir."""
    config = presets.on_synthetic(presets.small_set(variant, num_steps=6))
    config.method.box_head.dims = (32, 32)
    if config.method.name == "oim":
        config.method.alpha = ((0, 5.0), (4, 2.0))
    config.data.root = "demo/data/debug"
    config.proposals.path = "demo/data/debug_proposals.npz"
    config.proposals.max_proposals = 64
    config.train.init_from = ()
    config.train.micro_batch = 2
    config.train.scales = (96,)
    config.optim.warmup_steps = 2
    config.log.log_interval = 1
    config.log.checkpoint_interval = 3
    config.log.keep_period = 3
    config.log.image_interval = 3
    config.log.num_images = 2
    config.eval.scales = (96,)
    config.eval.micro_batch = 2
    return config
