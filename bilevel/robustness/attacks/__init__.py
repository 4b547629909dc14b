"""Solvers and interfaces that attack a trained classifier."""
