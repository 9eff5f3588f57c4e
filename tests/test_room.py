"""Memory that is lent: never to two at once, and again once nobody looks at it."""

import gc
import threading

import numpy as np
import torch

from diptych.data.room import Room

MB = 1 << 20


def test_a_piece_is_lent_again_once_no_view_of_it_is_left() -> None:
    room = Room()
    lent = room.lend(3 * MB).data
    first, part = lent.obj.ctypes.data, lent[5:9]  # pyright: ignore[reportAttributeAccessIssue]
    del lent
    gc.collect()
    assert room.kept == 0, "a slice of it is still looked at"
    del part
    assert room.kept == 3 * MB
    assert room.lend(3 * MB - 7).ctypes.data == first
    assert room.kept == 3 * MB, "it was not held, so it is here again"


def test_a_tensor_holds_what_it_was_made_of() -> None:
    room = Room()
    tensor = torch.from_numpy(room.lend(2 * MB)).view(2, MB)
    row = tensor[1]
    del tensor
    assert room.kept == 0
    other = room.lend(2 * MB)
    other[:] = 1
    row.fill_(7)
    assert int(other.max()) == 1
    del row
    assert room.kept == 2 * MB


def test_little_is_kept_and_what_does_not_fit_is_made() -> None:
    room = Room(limit=4 * MB)
    held = [room.lend(2 * MB) for _ in range(4)]
    del held
    assert room.kept == 4 * MB
    small, large = room.lend(1000), room.lend(40 * MB)
    assert (small.size, large.size, room.kept) == (1000, 40 * MB, 4 * MB)
    assert room.lend(0).size == 0


def test_threads_never_share_a_piece() -> None:
    room, wrong = Room(), list[int]()

    def work(number: int) -> None:
        for _ in range(200):
            piece = room.lend(MB)
            piece[::4096] = number
            if np.any(piece[::4096] != number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
