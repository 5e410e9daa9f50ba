"""Readers of data sets, proposals, the synthetic set, the input pipeline. Only this room imports TensorFlow."""
