"""Runs: train one in its workdir, open it again, predict with it, measure it."""

from wsod_jax.runs.predictor import load_run
from wsod_jax.runs.training import train

__all__ = ["load_run", "train"]
