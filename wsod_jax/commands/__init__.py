"""The commands: what `scripts/*.py` run. Each reads its command line, opens files, calls the rooms below and prints."""
