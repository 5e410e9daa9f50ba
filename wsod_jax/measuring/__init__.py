"""What `scripts/evaluate.py` measures of a trained detector and writes into its report."""
