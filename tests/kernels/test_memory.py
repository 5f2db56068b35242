"""Pooled buffers: whole while a tensor holds them, reused afterwards, and never two tensors' at once."""

import gc
import mmap
import os
import threading
from collections import deque

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.kernels.cpu import memory
from rimlit.kernels.cpu.build import load
from tests.conftest import random_tensor

MEGABYTE = 2**20
needs_loop = pytest.mark.skipif(load()[0] is None, reason="the C++ loop cannot be built here")


@pytest.fixture(autouse=True)
def nothing_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_idle", deque())


def bytes_of(size: int) -> Tensor:
    return memory.empty(size, dtype=torch.uint8)


def test_memory_is_reused_when_its_tensor_is_gone() -> None:
    tensor = bytes_of(3 * MEGABYTE)
    address = tensor.data_ptr()
    del tensor
    assert bytes_of(2 * MEGABYTE).data_ptr() == address


def test_memory_is_not_reused_while_a_view_of_it_lives() -> None:
    tensor = bytes_of(3 * MEGABYTE)
    view = tensor.fill_(7)[5:9]
    del tensor
    bytes_of(3 * MEGABYTE).fill_(1)
    assert view.tolist() == [7, 7, 7, 7]


def test_tensors_in_one_piece_hold_it_until_the_last_is_gone() -> None:
    shapes = {"first": (MEGABYTE,), "second": (3, 5), "third": (2, MEGABYTE // 4)}
    tensors = memory.empty_together(shapes, {"second": torch.int32}, torch.float32)
    for number, tensor in enumerate(tensors.values()):
        tensor.fill_(number)
    assert [tensor.dtype for tensor in tensors.values()] == [torch.float32, torch.int32, torch.float32]
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values())
    second = tensors.pop("second")
    assert [tensor.unique().tolist() for tensor in tensors.values()] == [[0.0], [2.0]]
    del tensors, tensor
    bytes_of(4 * MEGABYTE).fill_(9)
    assert second.unique().tolist() == [1]


def test_a_piece_that_is_much_too_large_is_not_reused() -> None:
    large = bytes_of(40 * MEGABYTE)
    address = large.data_ptr()
    del large
    assert bytes_of(2 * MEGABYTE).data_ptr() != address


def test_what_lies_idle_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST_IDLE", 8 * MEGABYTE)
    tensors = [bytes_of(4 * MEGABYTE) for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in tensors}) == 4
    del tensors
    assert sum(map(len, memory._idle)) == 8 * MEGABYTE


def test_a_system_that_takes_no_advice_allocates_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)
    monkeypatch.setattr(mmap, "MADV_FREE", -1, raising=False)
    tensor = bytes_of(2 * MEGABYTE)
    del tensor
    assert len(memory._idle) == 1


def test_small_tensors_are_the_allocators() -> None:
    bytes_of(MEGABYTE - 1)
    memory.empty_like(torch.ones(1000))
    assert not memory._idle


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_tensor_like_another_has_its_strides(order: tuple[int, ...]) -> None:
    tensor = torch.ones(70, 80, 90).permute(order)
    like = memory.empty_like(tensor)
    assert (like.shape, like.stride(), like.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert like.untyped_storage().nbytes() == tensor.nbytes  # so that it is saved without its neighbours
    del like
    assert len(memory._idle) == 1


def test_threads_never_get_the_same_memory() -> None:
    overwritten = []

    def use(number: int) -> None:
        for _ in range(30):
            tensor = bytes_of(MEGABYTE + number).fill_(number)
            if tensor.min() != number or tensor.max() != number:
                overwritten.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overwritten
    assert len(memory._idle) <= 2 * len(threads)  # a thread holds one while it asks for the next


def test_a_fork_does_not_write_into_its_parents_memory() -> None:
    tensor = bytes_of(2 * MEGABYTE).fill_(1)
    child = os.fork()
    if child == 0:
        tensor.fill_(2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert tensor.unique().tolist() == [1]


@needs_loop
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_loop_reads_nothing_that_it_has_not_written(
    cell: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rim = RIM(32, 132, num_mechanisms=3, num_active=2, cell=cell, preset=preset, backend="cpu", checkpoint_every=9)
    inputs = random_tensor(24, 20, 32).requires_grad_()

    def gradients() -> list[Tensor]:
        torch.manual_seed(1)
        features, _ = rim(inputs)
        return [gradient.clone() for gradient in torch.autograd.grad(features.sum(), [inputs, *rim.parameters()])]

    expected = gradients()
    allocate = memory._allocate
    pooled = []

    def allocate_nan(size: int) -> Tensor:
        pooled.append(size)
        return allocate(size).fill_(255)  # every number of these bytes is NaN

    monkeypatch.setattr(memory, "_allocate", allocate_nan)
    for gradient, other in zip(gradients(), expected, strict=True):
        assert torch.equal(gradient, other)
    assert max(pooled) > MEGABYTE


@needs_loop
@pytest.mark.parametrize("checkpoint_every", [None, 8])
def test_a_step_gives_back_all_that_it_took(checkpoint_every: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rim = RIM(32, 132, num_mechanisms=3, num_active=2, backend="cpu", checkpoint_every=checkpoint_every)
    new, taken = memory._new, []

    def note(size: int) -> mmap.mmap:
        taken.append(size)
        return new(size)

    def step() -> None:
        rim(random_tensor(64, 40, 32))[0].sum().backward()
        rim.zero_grad()

    monkeypatch.setattr(memory, "_new", note)
    gc.disable()  # nothing may wait for a collection
    try:
        for _ in range(3):
            step()
        before = len(taken)
        assert before and sum(map(len, memory._idle)) == sum(
            -(-size // memory._PAGE) * memory._PAGE for size in taken
        )
        step()
        assert len(taken) == before
    finally:
        gc.enable()


@needs_loop
def test_a_gradient_outlives_its_tape_and_is_saved_alone() -> None:
    torch.manual_seed(0)
    rim = RIM(64, 300, num_mechanisms=2, num_active=1, backend="cpu").eval()
    features, _ = rim(random_tensor(8, 5, 64))
    features.sum().backward()
    large = [
        weight.grad for weight in rim.parameters() if weight.grad is not None and weight.grad.nbytes > MEGABYTE
    ]
    assert large
    before = [gradient.clone() for gradient in large]
    del features
    gc.collect()
    again, _ = rim(random_tensor(8, 5, 64, seed=1))
    torch.autograd.grad(again.sum(), list(rim.parameters()))  # in the memory of the tape
    for gradient, other in zip(large, before, strict=True):
        assert torch.equal(gradient, other)
        assert gradient.untyped_storage().nbytes() == gradient.nbytes
