"""Accuracy under attack, and checks of whether it can be trusted."""
