"""Shipped configurations, a file each with a function `get_config`; `wsod-jax train --config NAME` takes one by name."""
