"""Runs the kernels' source without a GPU: every warp group is a thread, every race an error.

Triton's interpreter does not support Gluon. But a Gluon kernel is Python, and its layouts and
registers change its speed and not its results. Here the functions of a kernel run unchanged over
float64 tensors, with this module in place of Gluon's language. The emulator models the parts that
can fail: barriers with their phases and byte counts, copies and products that complete some time
after their start, and shared memory that is still read or written.

One partition or engine runs at a time; a seeded generator chooses which. At each barrier, wait or
start of an operation, another one may continue. Errors are: a deadlock; a write to memory that is
still being read, or a read of memory that is still being written; a buffer written by stores and
read by a copy engine or product without a fence in between; a result of a product used before its
wait; more arrivals than a barrier counts; and at the end any unfinished operation.

Not emulated: layouts, alignment, limits of registers and memory, rounding, and time.
"""

import random
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.gluon import ptx


class Tile(Tensor):
    """A tensor in registers, which in a kernel knows its layout."""

    type = types.SimpleNamespace(layout=None)  # pyright: ignore[reportAssignmentType]


def tile(values: Tensor) -> Tile:
    return values.as_subclass(Tile)


@dataclass
class Pointer:
    """Into a flat tensor in global memory."""

    memory: Tensor
    offset: int = 0

    def __add__(self, more: int) -> "Pointer":
        return Pointer(self.memory, self.offset + int(more))


@dataclass
class Descriptor:
    """Of a (B, H, N, D) tensor; out of bounds it reads zeros and writes nothing."""

    tensor: Tensor
    block_shape: tuple[int, ...]
    dtype: Any = torch.bfloat16
    layout: Any = None
    itemsize: int = 2

    @property
    def block_type(self):
        numel = torch.Size(self.block_shape).numel()
        return types.SimpleNamespace(shape=list(self.block_shape), nbytes=self.itemsize * numel)

    def windows(self, place: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What lies in bounds: of the tensor, and of the box."""
        inside, of_box = [], []
        for at, size, box in zip(place, self.tensor.shape, self.block_shape, strict=True):
            at = int(at)
            assert at >= 0, place
            length = max(0, min(box, size - at))
            inside.append(slice(at, at + length))
            of_box.append(slice(0, length))
        return tuple(inside), tuple(of_box)


@dataclass
class Room:
    """A buffer's slot in shared memory, and who is busy with it."""

    name: str
    values: Tensor
    readers: int = 0
    writers: int = 0
    unfenced: set[str] = field(default_factory=set)


@dataclass
class View:
    """A memory descriptor: all slots of a buffer, or one, perhaps sliced, reshaped or turned."""

    machine: "Machine"
    rooms: list[Room]
    shape: list[int]
    look: Callable[[Tensor], Tensor] = lambda values: values

    @property
    def room(self) -> Room:
        (room,) = self.rooms
        return room

    def values(self) -> Tensor:
        return self.look(self.room.values)

    def _looked(self, more: Callable[[Tensor], Tensor]) -> "View":
        before = self.look
        places = torch.empty(self.shape, device="meta")
        return View(self.machine, self.rooms, list(more(places).shape), lambda x: more(before(x)))

    def index(self, place: int) -> "View":
        assert 0 <= place < len(self.rooms)
        return View(self.machine, [self.rooms[int(place)]], self.shape[1:])

    def reshape(self, shape: list[int]) -> "View":
        return self._looked(lambda x: x.view(shape))

    def permute(self, order: tuple[int, ...]) -> "View":
        return self._looked(lambda x: x.permute(order))

    def slice(self, start: int, length: int, dim: int) -> "View":
        return self._looked(lambda x: x.narrow(dim, start, length))

    def store(self, values: Tensor) -> None:
        room = self.room
        _check(not room.readers and not room.writers, f"{room.name} stored to while in use")
        assert list(values.shape) == self.shape, (values.shape, self.shape)
        self.values().copy_(values.as_subclass(Tensor))
        room.unfenced.add(self.machine.block.current.name)


@dataclass
class Barrier:
    name: str
    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        _check(self.pending >= 0, f"{self.name} has more arrivals than it counts")
        if self.pending == 0 and self.bytes == 0:
            self.pending = self.count
            self.phase += 1


@dataclass
class Accumulator:
    """A product that was started; its result may be named only in a wait or a next product."""

    compute: Callable[[], Tensor]
    reads: list[Room]
    result: Tensor | None = None

    def run(self) -> None:
        self.result = self.compute()
        for room in self.reads:
            room.readers -= 1


@dataclass
class Group:
    """A partition, what its warps started, and what it waits for."""

    name: str
    products: list[Accumulator] = field(default_factory=list)
    stores: list[Callable[[], None]] = field(default_factory=list)
    blocked: Callable[[], bool] | None = None
    done: bool = False


class RaceError(Exception):
    """What a GPU would answer with a hang or with wrong numbers."""


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise RaceError(text)


class Block:
    """One thread block: its shared memory, its partitions, and what is under way."""

    def __init__(self, program: int, programs: int, generator: random.Random) -> None:
        self.program, self.programs, self.generator = program, programs, generator
        self.rooms: list[Room] = []
        self.barriers: list[Barrier] = []
        self.copies: list[Callable[[], None]] = []
        self.groups: list[Group] = [Group("all")]
        self.current = self.groups[0]
        self.baton = threading.Condition()
        self.error: BaseException | None = None
        # What was started may take place at any time, or as late as possible: when all others wait.
        self.haste = generator.choice((0.0, 0.5))

    # What is scheduled.

    def yield_(self, blocked: Callable[[], bool] | None = None) -> None:
        """Let others go on, and come back once ``blocked`` is false."""
        me = self.current
        me.blocked = blocked
        if len(self.groups) == 1:
            self._finish()
            assert blocked is None or not blocked()
            return
        self._hand_over()
        with self.baton:
            self.baton.wait_for(lambda: self.current is me or self.error is not None)
        if self.error is not None:
            raise SystemExit
        me.blocked = None

    def _step(self) -> bool:
        """Some of what is under way takes place, if anything is; products and stores in order."""
        waiting = [*self.copies]
        for group in self.groups:
            waiting += group.stores[:1]
            waiting += [each for each in group.products if each.result is None][:1]
        if not waiting:
            return False
        chosen = self.generator.choice(waiting)
        if isinstance(chosen, Accumulator):
            chosen.run()
            return True
        chosen()
        for started in (self.copies, *(group.stores for group in self.groups)):
            if chosen in started:
                started.remove(chosen)
        return True

    def _finish(self) -> None:
        while self._step():
            pass

    def _hand_over(self) -> None:
        while self.generator.random() < self.haste and self._step():
            pass
        while not (ready := self._ready()) and not all(group.done for group in self.groups):
            if not self._step():
                stuck = [group.name for group in self.groups if not group.done]
                raise RaceError(f"deadlock of {stuck}")
        with self.baton:
            self.current = self.generator.choice(ready) if ready else self.groups[0]
            self.baton.notify_all()

    def _ready(self) -> list[Group]:
        return [
            group
            for group in self.groups
            if not group.done and (group.blocked is None or not group.blocked())
        ]

    def specialize(self, partitions, worker_num_warps, worker_num_regs) -> None:
        assert len(worker_num_warps) == len(worker_num_regs) == len(partitions) - 1
        self.groups = [Group(f"partition {n}") for n in range(len(partitions))]
        self.current = self.generator.choice(self.groups)
        threads = [
            threading.Thread(target=self._run, args=(group, *each), daemon=True)
            for group, each in zip(self.groups, partitions, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
        self._finish()
        for group in self.groups:
            _check(not group.products, f"{group.name} ends with products that it never waited for")

    def _run(self, group: Group, function: Callable, arguments: tuple) -> None:
        try:
            with self.baton:
                self.baton.wait_for(lambda: self.current is group or self.error is not None)
            if self.error is None:
                function(*arguments)
                # A block's shared memory is another's as soon as its last warp is done.
                _check(not group.stores, f"{group.name} ends before its stores have been read")
                group.done = True
                self._hand_over()
        except SystemExit:
            pass
        except BaseException as error:
            with self.baton:
                self.error = self.error or error
                self.baton.notify_all()


class Machine:
    """Gluon's language, as far as the kernels speak it."""

    def __init__(self) -> None:
        self.block: Block = Block(0, 1, random.Random(0))

    # gl

    def program_id(self, axis: int) -> int:
        assert axis == 0
        return self.block.program

    def num_programs(self, axis: int) -> int:
        assert axis == 0
        return self.block.programs

    def load(self, pointer: Pointer) -> int | float:
        return pointer.memory.flatten()[pointer.offset].item()

    def allocate_shared_memory(self, dtype, shape, layout) -> View:
        name = f"buffer {len(self.block.rooms)}"
        rooms = [
            # NaN: memory must be written before it is read.
            Room(f"{name}[{slot}]", torch.full(list(shape[1:]), float("nan"), dtype=torch.float64))
            for slot in range(shape[0])
        ]
        self.block.rooms += rooms
        return View(self, rooms, list(shape))

    def inline_asm_elementwise(self, text, constraints, args, dtype, is_pure, pack) -> Tile:
        return tile(ptx.run(text, constraints, args, pack))

    def where(self, condition, chosen, other):
        if not any(isinstance(each, Tensor) for each in (condition, chosen, other)):
            return chosen if condition else other
        return torch.where(torch.as_tensor(condition), chosen, other)

    # mbarrier

    def barrier(self, view: View) -> Barrier:
        room = view.room
        if not isinstance(room.values, Barrier):
            room.values = Barrier(room.name)  # pyright: ignore[reportAttributeAccessIssue]
            self.block.barriers.append(room.values)  # pyright: ignore[reportArgumentType]
        return room.values  # pyright: ignore[reportReturnType]

    def init(self, view: View, count: int) -> None:
        barrier = self.barrier(view)
        barrier.count = barrier.pending = count

    def expect(self, view: View, bytes: int) -> None:
        barrier = self.barrier(view)
        barrier.bytes += bytes
        barrier.pending -= 1
        barrier.settle()

    def arrive(self, view: View, count: int) -> None:
        self.block.yield_()
        barrier = self.barrier(view)
        barrier.pending -= count
        barrier.settle()

    def wait(self, view: View, parity: int) -> None:
        barrier = self.barrier(view)
        assert parity in (0, 1)
        # Passes where the phase of that parity is over, which the one before the first is.
        self.block.yield_(lambda: barrier.phase % 2 == parity)

    # tma

    def async_copy_global_to_shared(self, source: Descriptor, place, barrier: View, target: View):
        room, arrival = target.room, self.barrier(barrier)
        _check(not room.readers, f"{room.name} overwritten while it is read")
        _check(not room.writers, f"{room.name} overwritten while it is written")
        _check(not room.unfenced, f"{room.name} stored to without a fence before it is overwritten")
        assert list(target.shape) == list(source.block_shape)
        room.writers += 1

        def copy() -> None:
            inside, of_box = source.windows(place)
            room.values.zero_()
            room.values[of_box] = source.tensor[inside]
            room.writers -= 1
            arrival.bytes -= source.block_type.nbytes
            _check(arrival.bytes >= 0, f"{arrival.name} gets more bytes than it expects")
            arrival.settle()

        self.block.copies.append(copy)

    def _write(self, target: Descriptor, place, source: View, add: bool) -> None:
        room = source.room
        _check(not room.unfenced, f"{room.name} leaves without a fence behind its store")
        _check(not room.writers, f"{room.name} leaves while it is written")
        assert list(source.shape) == list(target.block_shape)
        room.readers += 1

        def copy() -> None:
            inside, of_box = target.windows(place)
            values = source.values()[of_box]
            target.tensor[inside] = values + target.tensor[inside] if add else values
            room.readers -= 1

        self.block.current.stores.append(copy)

    def async_copy_shared_to_global(self, target: Descriptor, place, source: View) -> None:
        self._write(target, place, source, add=False)

    def async_reduce(self, target: Descriptor, place, source: View) -> None:
        self._write(target, place, source, add=True)

    def store_wait(self, pendings: int) -> None:
        warp_group = self.block.current
        self.block.yield_(lambda: len(warp_group.stores) > pendings)

    def fence_async_shared(self) -> None:
        for room in self.block.rooms:
            room.unfenced.discard(self.block.current.name)

    # wgmma

    def warpgroup_mma(self, a, b: View, acc, *, use_acc=True, is_async=False) -> Accumulator:
        assert is_async
        reads = [each.room for each in (a, b) if isinstance(each, View)]
        for room in reads:
            _check(not room.writers, f"{room.name} multiplied while it is written")
            _check(not room.unfenced, f"{room.name} multiplied without a fence behind its store")
            room.readers += 1

        def product() -> Tensor:
            left, right = (each.values() if isinstance(each, View) else each for each in (a, b))
            start = acc.result if isinstance(acc, Accumulator) else acc
            assert start is not None
            values = left.double() @ right.double()
            assert values.shape == start.shape
            return tile((values + start if use_acc else values).as_subclass(Tensor))

        started = Accumulator(product, reads)
        self.block.current.products.append(started)
        self.block.yield_()
        return started

    def warpgroup_mma_wait(self, outstanding: int, deps: list):
        warp_group = self.block.current
        waited = warp_group.products[: max(0, len(warp_group.products) - outstanding)]
        self.block.yield_(lambda: any(each.result is None for each in waited))
        warp_group.products = warp_group.products[len(waited) :]
        finished = []
        for each in deps:
            if isinstance(each, Accumulator):
                _check(
                    each not in warp_group.products, "a product's result named before it is there"
                )
                each = each.result
            finished.append(each)
        return finished[0] if len(finished) == 1 else tuple(finished)
