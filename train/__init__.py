"""Spoken data set to checkpoint: stages ground, align and chat."""
