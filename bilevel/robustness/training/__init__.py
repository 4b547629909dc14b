"""Training a classifier against an adversary: methods, recipes, epochs, results on disk."""
