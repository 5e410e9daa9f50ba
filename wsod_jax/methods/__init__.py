"""One file tells one method: its options, network, mining, losses, prediction."""
