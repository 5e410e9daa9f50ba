"""The commands of `wsod-jax`: each reads its command line, opens files, calls the rooms below and prints."""
