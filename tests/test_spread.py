"""Pieces of work over processes: what one that fails leaves behind."""

import time
from functools import partial
from multiprocessing import active_children

import pytest

from llasm.errors import LlasmError
from llasm.spread import RUNNERS


def fail(started):
    while not started.exists():
        time.sleep(0.05)
    raise LlasmError("this piece cannot be done")


def work_on(started):
    started.touch()
    time.sleep(120)


def test_a_piece_that_fails_ends_the_others(tmp_path):
    begun = time.monotonic()
    pieces = [partial(work_on, tmp_path / "started"), partial(fail, tmp_path / "started")]
    with pytest.raises(LlasmError, match="this piece cannot be done"):
        list(RUNNERS["local"](pieces, 2, False))
    assert time.monotonic() - begun < 60
    assert not active_children()
