"""Per-image loss values."""
