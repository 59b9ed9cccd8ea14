"""Runners of several processes: every process runs the steps of process 0, which are small to send."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_models import TEXT, VISION, make_deployment
from test_distributed import GLOO, group_of_two

from gemma_tpu.deployment import Calls
from gemma_tpu.distributed.channel import pack, unpack
from gemma_tpu.distributed.shared_runner import LeadingRunner
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.warmup import warmup_steps


def _plain(part: Any) -> Any:
    """Dataclasses as dicts, in tuples too."""
    if isinstance(part, tuple):
        return [_plain(one) for one in part]
    return dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part


def test_every_call_that_changes_a_device_is_made_by_all_processes() -> None:
    """Calls that read, wait, or speak of errors are process 0's alone."""
    own = {"soft_tokens", "wait", "explained"}
    calls = {name for name, value in vars(Runner).items() if callable(value) and not name.startswith("_")}
    mirrored = {name for name, value in vars(LeadingRunner).items() if callable(value)}
    assert calls - own <= mirrored
    assert calls >= {"run", "reset", "logits"}


def test_a_step_is_small_and_comes_as_it_was_sent() -> None:
    """Pixels in the dtype of the weights, forbidden tokens as ids and not as a mask over the vocabulary."""
    deployment = make_deployment(dataclasses.replace(TEXT, vision=VISION, vocab_size=262_144), chunks=(8, 16))
    steps = [
        step
        for _, step in warmup_steps(
            dataclasses.replace(deployment, dtype="bfloat16"), Calls(together=False, few=(1, 2))
        )
    ]
    for step in steps:
        (found,) = unpack(packed := pack(step))
        for name, part in vars(step).items():
            np.testing.assert_equal(_plain(getattr(found, name)), _plain(part))
        pixels = sum(images.pixels.size for images in step.encode)
        assert len(packed) < 2 * pixels + 2000


def test_a_runner_starts_afresh_unless_a_program_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it may be running elsewhere. What fails before a program is called leaves all in step."""
    resets = []
    monkeypatch.setattr(Runner, "reset", lambda _: resets.append(1))
    with group_of_two() as (group, _):
        runner = object.__new__(LeadingRunner)
        runner._group, runner._key, runner._program_failed = group, 0, False
        runner.explained(KeyError("of the preparation"))
        runner.reset()
        assert resets == [1]
        runner.explained(GLOO)
        with pytest.raises(RuntimeError, match="a program failed, and several processes cannot start afresh"):
            runner.reset()
        assert resets == [1]
