"""Turns at Python's lock while files are read."""

from __future__ import annotations

import sys
import threading

import pytest

from gemma_tpu.checkpoint.turns import short_turns


def test_turns_are_short_until_the_last_is_done() -> None:
    usual, inside, leave = sys.getswitchinterval(), threading.Event(), threading.Event()

    def other() -> None:
        with short_turns():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with short_turns():
        thread.start()
        assert inside.wait(60)
        assert sys.getswitchinterval() < usual / 5
    assert sys.getswitchinterval() < usual / 5  # the other, which began later, is not done
    leave.set()
    thread.join()
    assert sys.getswitchinterval() == usual


def test_shorter_turns_stay() -> None:
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.0001)
        with short_turns():
            assert sys.getswitchinterval() == pytest.approx(0.0001, rel=0.1)
        assert sys.getswitchinterval() == pytest.approx(0.0001, rel=0.1)
    finally:
        sys.setswitchinterval(usual)
