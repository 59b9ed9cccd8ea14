"""What `bench` makes of the times of requests; that it measures: tests/test_cli.py."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
from small_models import TEXT

from gemma_tpu.bench import measure


def request(submitted: float, first: float, finished: float) -> mock.MagicMock:
    made = mock.MagicMock()
    made.clock = SimpleNamespace(submitted=submitted, first=first, finished=finished)
    made.timings.first_token = first - submitted
    return made


def test_decode_is_not_charged_for_prompts_that_are_read_beside_it() -> None:
    """Two rows, of which the second begins when the first has made 2 tokens of its 5."""
    asked = [request(0, 2, 2), request(10, 12, 17), request(10, 15, 19)]
    model = mock.Mock(config=TEXT)
    model.engine.submit.side_effect = asked
    found = {one.what: (one.value, one.unit) for one in measure(model, rows=2, prompt=7, tokens=5, repeats=1)}
    assert found == {
        "7 tokens to first token": (2000, "ms"),
        "decode, 2 rows": (2 * 4 / 4, "tokens/s"),
        "prompts and answers, 2 rows": (pytest.approx(10 / 9), "tokens/s"),
    }
    prompts = [call.args[0] for call in model.engine.submit.call_args_list]
    assert [call.args[2].max_new_tokens for call in model.engine.submit.call_args_list] == [1, 5, 5]
    assert all(len(tokens) == 7 for tokens in prompts)
    assert len(set(map(tuple, prompts))) == 3, "one is found in the cache"
