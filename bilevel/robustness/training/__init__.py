"""Training a classifier against an adversary: methods, recipes, epochs, what is left of a run."""
