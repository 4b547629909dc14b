"""Threat models, and the losses that attacks maximise."""
