"""The commands of `wsod-jax`: each parses its arguments, opens files, calls the rooms below, prints."""
