"""Voices that are programs of the system: tests that need one are skipped where it is missing."""

import shutil

import pytest

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the program flite is not installed")
