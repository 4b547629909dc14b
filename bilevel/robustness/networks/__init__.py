"""Classifiers: architectures, how they compute, and their weights in files."""
