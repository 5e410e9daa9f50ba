"""What `scripts/visualize.py` draws of trained runs, a file per kind of run."""
