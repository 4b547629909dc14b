"""Classifiers: architectures, precision and compilation, and weights in files."""
