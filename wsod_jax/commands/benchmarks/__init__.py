"""What `scripts/benchmark.py` measures, a file per subject."""
