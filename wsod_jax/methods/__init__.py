"""One method per file: its options, network, mining, losses, prediction."""
