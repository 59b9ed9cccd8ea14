"""What a prompt can begin with, and who gives way when pages run out; at random: tests/scheduler_steps.py."""

from __future__ import annotations

import pytest

from gemma_tpu.engine.memory import CacheMemory
from gemma_tpu.engine.prefixes import common, intact
from gemma_tpu.engine.request import Request
from gemma_tpu.engine.rows import Row
from gemma_tpu.engine.step import Clear, Copy
from gemma_tpu.options import SamplingParams

TEXT = list(range(100, 200))


def request(tokens: list[int], number: int = 0) -> Request:
    made = Request(tokens, [], SamplingParams(max_new_tokens=4))
    made.number = number
    return made


def answered(memory: CacheMemory, tokens: list[int], answer: int = 0) -> Row:
    """A row that rests after a prompt and so many tokens more."""
    memory.turn += 1
    row = memory.begin(request(tokens), 0)
    assert row is not None
    row.keys = [*tokens, *range(answer)]
    memory.extend(row, len(row.keys))
    memory.check(row)
    row.request, row.last_used = None, memory.turn
    memory.trim(row)
    return row


def begun(memory: CacheMemory, *prompts: list[int]) -> list[Row]:
    """The rows of requests that come at once."""
    rows = [memory.begin(request(tokens, i), 0) for i, tokens in enumerate(prompts)]
    return [row for row in rows if row is not None]


def test_common_beginnings() -> None:
    assert common([], [1]) == 0
    assert common([1, 2, 3], [1, 2, 3, 4]) == common([1, 2, 3, 4], [1, 2, 3]) == 3
    assert [common(TEXT, [*TEXT[:n], 0, *TEXT[n:]]) for n in (0, 1, 7, 99)] == [0, 1, 7, 99]


@pytest.mark.parametrize("window", [2, 4, 7])
def test_rings_are_intact_as_long_as_they_hold_the_window(window: int) -> None:
    """Against a ring written one position at a time."""
    for slots in (window, window + 2):
        ring: list[int] = [-1] * slots
        for written in range(20):
            for length in range(1, written + 1):
                needed = range(max(0, length - window + 1), length)
                assert intact([(window, slots)], written, length) == all(at in ring for at in needed), (written, length)
            ring[written % slots] = written


def test_a_row_is_gone_on_with_where_it_is() -> None:
    memory = CacheMemory(3, 60, 4, rings=[(8, 8)], places=1)
    answered(memory, TEXT[:20], 3)
    row = answered(memory, TEXT[:40])
    memory.take_operations()
    found = memory.begin(request([*TEXT[:40], 1, 2]), 0)
    assert found is row
    assert row.keys == TEXT[:40]
    assert memory.take_operations() == ()


def test_a_part_of_what_a_row_holds_is_copied_while_its_rings_have_it() -> None:
    memory = CacheMemory(3, 60, 4, rings=[(64, 64)], places=1)
    row = answered(memory, TEXT[:50])  # more than a window would have been lost
    found = memory.begin(request([*TEXT[:38], 1, 2]), 0)
    assert found is not None
    assert found is not row
    assert found.keys == TEXT[:38]
    (copy,) = memory.take_operations()
    assert isinstance(copy, Copy)
    assert (copy.kind, copy.source, copy.target, copy.length) == ("copy", row.index, found.index, 38)
    assert list(copy.source_pages) == row.pages[:10]
    assert list(copy.target_pages) == found.pages[:10]
    assert row.keys == TEXT[:50], "the other conversation is kept"


def test_what_rings_forget_is_stored_when_two_prompts_part_there() -> None:
    memory = CacheMemory(4, 200, 4, rings=[(8, 8)], places=2)
    answered(memory, [*TEXT[:40], *range(20)])
    second = memory.begin(request([*TEXT[:40], 3, *range(20)]), 0)
    assert second is not None
    assert not second.keys, "its rings have gone on"
    assert memory.chunk_target(second, 60) == 40, "no chunk passes over where they part"
    second.keys = second.prompt_keys[:40]
    memory.keep_ends(second, 60)
    second.keys = second.prompt_keys[:60]
    memory.take_operations()
    third = memory.begin(request([*TEXT[:40], 4, 5]), 0)
    assert third is not None
    assert third.keys == TEXT[:40]
    (copy,) = memory.take_operations()
    assert isinstance(copy, Copy)
    assert (copy.kind, copy.length, len(copy.source_pages)) == ("restore", 40, 10)


def test_a_prompt_that_begins_like_another_waits_for_it() -> None:
    """Only if that saves enough, and until the two part: the rings are about to go on from there."""
    memory = CacheMemory(4, 200, 4, rings=[(8, 8)], least_awaited=35)
    leader, follower, same, other = begun(memory, TEXT[:60], [*TEXT[:40], 1, 2, 3], TEXT[:60], [*TEXT[:35], 3, 2, 1])
    assert memory.followers(leader) == [follower, same]
    assert not memory.followers(follower)
    assert not other.leader
    assert memory.chunk_target(leader, 50) == 40
    leader.keys = leader.prompt_keys[:39]
    assert not memory.follow(0)
    leader.keys = leader.prompt_keys[:40]
    assert memory.follow(0) == [follower]
    (copy,) = memory.take_operations()
    assert isinstance(copy, Copy)
    assert (copy.kind, copy.source, copy.target, copy.length) == ("copy", leader.index, follower.index, 40)
    assert (list(copy.source_pages), list(copy.target_pages)) == (leader.pages[:10], follower.pages[:10])
    assert follower.keys == TEXT[:40]
    assert memory.followers(leader) == [same]


def test_who_waited_for_one_that_has_left_takes_what_it_had() -> None:
    memory = CacheMemory(4, 200, 4, rings=[(8, 8)])
    first, second, *others = rows = begun(memory, *[TEXT[:60]] * 4)
    assert memory.followers(first) == [second, *others]
    first.keys, first.request = first.prompt_keys[:45], None
    assert memory.follow(0) == [second, *others], "each has what it had"
    assert second.keys == TEXT[:45]
    assert not any(map(memory.followers, rows)), "14 more are not worth it"


def test_the_next_one_is_waited_for_when_the_first_has_left() -> None:
    memory = CacheMemory(4, 200, 4, rings=[(8, 8)])
    first, second, *others = begun(memory, *[TEXT[:60]] * 4)
    first.request = None
    assert memory.follow(0) == []
    assert memory.followers(second) == others


def test_what_is_not_used_gives_way_oldest_first() -> None:
    memory = CacheMemory(3, 15, 4)
    oldest, newer = answered(memory, TEXT[:20]), answered(memory, TEXT[50:70])
    busy = memory.begin(request(list(range(20))), 0)
    assert busy is not None
    assert memory.extend(busy, 24)
    assert not oldest.keys
    assert newer.keys
    assert memory.extend(busy, 60)
    assert not newer.keys
    assert not memory.extend(busy, 61)


def test_pages_that_may_not_be_finite_are_cleared_before_another_has_them() -> None:
    memory = CacheMemory(1, 10, 4)
    row = memory.begin(request(TEXT[:20]), 0)
    assert row is not None
    row.keys, pages = TEXT[:12], row.pages  # cancelled before its first token was read
    row.request = None
    assert memory.begin(request([1, 2, 3]), 0) is row
    assert Clear(None, pages).pages in [one.pages for one in memory.take_operations() if isinstance(one, Clear)]


def test_groups_keep_to_their_pages() -> None:
    memory = CacheMemory(4, 40, 4, groups=2)
    rows = [answered(memory, TEXT[i : i + 20]) for i in range(0, 80, 20)]
    assert [{page // 20 for page in row.pages} for row in rows] == [{0}, {0}, {1}, {1}]
