"""Teach the tiny backbone its classes from rendered one-object images: image labels only, and no image of the
detection set.

    wsod-jax train --config pretrain_tiny --workdir demo/pretrain
    wsod-jax convert_weights --from checkpoint demo/pretrain --out demo/weights/tiny.npz
"""

from ml_collections import ConfigDict


def get_config():
    """Return the configuration."""
    config = ConfigDict()
    config.seed = 0
    config.method = dict(name="classifier", activation="softmax")
    config.backbone = dict(name="tiny", preprocessing="torch", stride=4)
    config.data = dict(
        reader="voc", root="demo/data/objects", train_split="trainval", test_split="test"
    )
    config.train = dict(
        num_steps=1400,
        micro_batch=16,
        scales=(64,),
        aspect=1.0,
        flip=True,
    )
    config.optim = dict(
        name="adamw", learning_rate=2e-3, shape="cosine", warmup_steps=50, weight_decay=1e-4
    )
    config.log = dict(log_interval=50, checkpoint_interval=1400)
    config.eval = dict(scales=(64,), aspect=1.0, flips=(False,), micro_batch=16)
    return config
