"""What `wsod-jax visualize` draws of trained runs, a file per kind of run."""
