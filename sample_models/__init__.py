"""Small models of our own, one idea each, and tiny checkpoints of them. Not installed."""
