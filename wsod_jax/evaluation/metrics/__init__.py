"""What predictions are worth: one file for each family of numbers."""
