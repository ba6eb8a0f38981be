"""Spoken data set to checkpoint: stages ground and align."""
