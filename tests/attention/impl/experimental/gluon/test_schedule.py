"""The work list holds every visible tile once, in its class, with about equal work per item."""

import random
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from sigmoid_attention.attention.impl.experimental.gluon import schedule, walk
from tests.support.gluon import emulator, listing, planned, translation
from tests.support.triton import interpreter
from tests.support.triton.shipped import H200, Launch

SIZES = ((150, 200), (300, 190), (64, 1000), (700, 64), (1, 1))
WINDOWS = ((-1, -1), (-1, 0), (0, 0), (100, 0), (70, 30), (-1, 500))


def classes(rows: int, columns: int, window: tuple[int, int], blocks: tuple[int, int]):
    """For each tile: whether any pair of it is visible, and whether all that exist are."""
    offset = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)
    left, right = window
    visible = torch.ones_like(offset, dtype=torch.bool)
    if left >= 0:
        visible &= offset <= left
    if right >= 0:
        visible &= offset >= -right
    cut = [row.split(blocks[1], 1) for row in visible.split(blocks[0])]
    some = torch.tensor([[bool(tile.any()) for tile in row] for row in cut])
    every = torch.tensor([[bool(tile.all()) for tile in row] for row in cut])
    return some, every


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("blocks", [(128, 128), (192, 64)], ids=str)
def test_tiles_are_those_that_are_seen_and_masked_where_not_in_full(sizes, window, blocks):
    some, every = classes(*sizes, window, blocks)
    for row, (first, inner, full, full_end, inner_end, end) in enumerate(
        listing.visits(*sizes, *window, *blocks).tolist()
    ):
        assert first <= inner <= full <= full_end <= inner_end <= end
        assert (full, full_end) == (inner, inner_end)
        assert some[row].nonzero().flatten().tolist() == list(range(first, end))
        assert every[row, inner:inner_end].all()
        assert not every[row, first:inner].any() and not every[row, inner_end:end].any()


def test_plan_narrows_and_tells_tails():
    spans = torch.tensor([[[[1, 0]]], [[[2, 9]]], [[[3, 9]]], [[[5, 1]]]]).expand(4, 1, 2, 2)
    seen = listing.visits(256, 768, -1, 0, 128, 64, spans)
    # Of the first block's 10 tiles, the last two are masked; of the second's 12, none is left but 2
    # which lie in the tail.
    assert seen[0, 0].tolist() == [[2, 2, 4, 6, 8, 10], [0, 0, 2, 2, 2, 2]]


@pytest.mark.parametrize("seen", [(2, 3, 5, 8, 11, 13), (0, 0, 0, 4, 4, 4), (1, 1, 3, 3, 7, 9)])
def test_walk_takes_each_tile_once_and_class_by_class(seen):
    names = translation.plain(walk, emulator.Machine())
    first, inner, full, full_end, inner_end, end = seen
    masked, wide, steps = names.class_ends(seen)
    walked = [names.tile_at(step, seen) for step in range(steps)]
    assert sorted(walked) == list(range(first, end))
    assert set(walked[:masked]) == {*range(first, inner), *range(inner_end, end)}
    assert walked[masked:wide] == list(range(full, full_end))


@pytest.mark.parametrize("items", [1, 7, 132, 133, 400])
def test_thread_blocks_share_all_items(items):
    taken: list[int] = []
    machine = emulator.Machine()
    names = translation.plain(walk, machine)
    for program in range(132):
        machine.block = emulator.Block(program, 132, random.Random(0))
        taken += [names.item_at(turn) for turn in range(names.item_count((items,)))]
    assert sorted(taken) == list(range(items))


def unlisted(
    batch: int, heads: int, group: int, rows: int, columns: int, window: tuple[int, int],
    blocks: tuple[int, int], last_first: bool,
) -> list[list[int]]:  # fmt: skip
    """What a kernel without a list finds, for the first head of each item, as the list has it."""
    names = translation.plain(walk, emulator.Machine())
    items = batch * heads // group * -(-rows // blocks[0])
    sizes = items, rows, columns, heads, group
    limits = tuple(walk.UNLIMITED.value if side < 0 else side for side in window)
    collected = []
    for row in range(0, items * group, group):
        place = names.locate(None, row, sizes, blocks[0], last_first)
        windowed = max(window) >= 0
        seen = names.visited_tiles(None, row, place[2], sizes, limits, *blocks, windowed)
        collected.append([*place, *seen])
    return collected


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("blocks", [(128, 128), (192, 64)], ids=str)
@pytest.mark.parametrize("heads", [(2, 4, 2), (3, 2, 1)], ids=str)
def test_without_a_plan_items_and_tiles_are_those_of_the_list(heads, sizes, window, blocks):
    listed = listing.work(listing.visits(*sizes, *window, *blocks), *heads)
    actual = unlisted(*heads, *sizes, window, blocks, last_first=True)
    assert sorted(actual) == sorted(listed[:, 0].tolist())


def test_without_a_plan_too_the_longest_come_first_and_some_heads_together(monkeypatch):
    monkeypatch.setattr(walk, "TOGETHER", gl.constexpr(8))
    blocks = 16, 16
    # From the keys, the first are seen by most.
    for window, last_first in (((-1, 0), True), ((0, -1), False)):
        listed = listing.work(listing.visits(96, 96, *window, *blocks), 1, 5, 1)
        actual = unlisted(1, 5, 1, 96, 96, window, blocks, last_first)
        assert actual == listed[:, 0].tolist()


@pytest.mark.parametrize(("queries", "heads"), [(16384, 16), (4096, 64)])
@pytest.mark.parametrize("planned", [False, True], ids=["reckoned", "listed"])
def test_causal_work_is_shared_out_evenly(queries, heads, planned):
    blocks = 128, 128
    if planned:
        seen = listing.visits(queries, queries, -1, 0, *blocks)
        work = listing.work(seen, 1, heads, 1)[:, 0].tolist()
    else:
        work = unlisted(1, heads, 1, queries, queries, (-1, 0), blocks, last_first=True)
    length = [row[8] - row[3] for row in work]
    machine = emulator.Machine()
    names = translation.plain(walk, machine)
    loads = []
    for program in range(132):
        machine.block = emulator.Block(program, 132, random.Random(0))
        turns = range(names.item_count((len(length),)))
        loads.append(sum(length[names.item_at(turn)] for turn in turns))
    assert sum(loads) == sum(length)
    assert max(loads) <= 1.01 * sum(loads) / 132


def test_groups_of_heads_follow_each_other_each_with_its_longest_first():
    blocks = walk.TOGETHER.value // 2
    seen = listing.visits(blocks, blocks, -1, 0, 1, 1)
    work = listing.work(seen, 2, 4, 2)
    assert work.shape == (2 * 2 * blocks, 2, 9)
    batch, head, block = work[:, 0, :3].T
    # Two key heads of two heads each run together, which are those of one batch.
    assert batch.tolist() == [0] * 2 * blocks + [1] * 2 * blocks
    assert head[:4].tolist() == [0, 2, 0, 2]
    assert block[: 2 * blocks].tolist() == [each // 2 for each in reversed(range(2 * blocks))]
    assert (work[:, 1, 1] == head + 1).all()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Tensor]]:
    """The list's own kernels, in the Python that interprets them."""
    with interpreter.start() as pool:
        yield lambda *arguments: pool.submit(planned.listed, *arguments).result()


# Blocks of rows, of columns, heads and what is looked at together: 9 groups of 2 heads; one group
# that no program fills; groups of one head each, of several programs.
LISTS = {
    "groups-of-heads": (40, 30, (3, 6, 1), 64),
    "shared-keys": (7, 9, (2, 6, 3), 2048),
    "long-rows": (150, 20, (1, 2, 1), 100),
}


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (1000, 70)], ids=str)
@pytest.mark.parametrize("name", LISTS)
def test_the_list_holds_what_a_plan_has_left_the_longest_first(interpreted, name, window):
    blocks, units, (batch, heads, group), together = LISTS[name]
    # The last block's only row sees the last column, which ends no tile.
    rows, columns = blocks * 128 - 127, units * 128 - 70
    generator = torch.Generator().manual_seed(blocks)
    # From, to, and in between what needs the full sigmoid; some find nothing.
    ends = torch.randint(0, units + 1, (4, batch, heads, blocks), generator=generator)
    spans = ends.sort(0).values.int()
    spans[3, ..., ::5] = spans[0, ..., ::5]
    arguments = (spans, rows, columns, window, 64, group, 128)
    actual = interpreted(together, *arguments)
    with mock.patch.object(walk, "TOGETHER", gl.constexpr(together)):
        seen = listing.visits(rows, columns, *window, 128, 64, spans)
        assert torch.equal(actual, listing.work(seen, batch, heads, group))


def test_the_lists_kernels_spill_nothing():
    kernels = {}

    def record(kernel, programs, *arguments, **constants) -> None:
        kernels[kernel.__name__] = Launch(kernel, arguments, constants).compiled(H200)

    with mock.patch.object(schedule, "launch", record):
        schedule.work(torch.zeros(4, 1, 16, 32).int(), 4096, 4096, (-1, 0), 128, 1, 128)
    assert kernels.keys() == {"_count_tiles", "_write_longest_first"}
    assert all(kernel.spills == 0 for kernel in kernels.values())
