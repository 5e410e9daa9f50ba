"""What `wsod-jax benchmark` measures, a file per subject."""
