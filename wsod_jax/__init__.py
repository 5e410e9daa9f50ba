"""Weakly supervised object detection in JAX: boxes from image-level labels.

detector = wsod_jax.load_run("runs/oim_ir")
found = detector.detect("photo.jpg")  # found.boxes, found.scores, found.names
"""

from typing import Any

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    """Import the front door when it is used: JAX takes a second."""
    if name == "load_run":
        from wsod_jax.runs import load_run

        return load_run
    raise AttributeError(f"module 'wsod_jax' has no attribute {name!r}")
