"""Training a classifier against an adversary: epochs, validation and checkpoints."""
