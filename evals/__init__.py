"""Offline batch evaluation of spoken question answering."""
