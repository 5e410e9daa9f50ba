"""One file tells one method: network, mining, losses, prediction."""
