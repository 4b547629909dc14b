"""Classifiers: architectures, averaged weights, precision and compilation."""
