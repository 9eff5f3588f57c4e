"""Ranks of one process group, each a process, that a benchmark drives call by call."""

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from diptych.cluster.host import Host

_PATIENCE_S = 600.0


class Team:
    """`world` processes in one gloo group; each makes an object, whose methods `call` calls.

    Args:
        world: how many.
        make: called in every process as `make(rank, world, *args)`; of a module, not local.
        args: plain values.
    """

    def __init__(self, world: int, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*Host.template, "diptych.finetune.parts"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._pipes: list[Connection] = []
        self._ranks: list[Any] = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            told = (theirs, rank, world, port, make, args)
            self._ranks.append(context.Process(target=_serve, args=told, daemon=True))
            self._ranks[-1].start()
            theirs.close()
            self._pipes.append(ours)
        self.call("__class__")

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for rank in self._ranks:
            rank.join(10)
            rank.kill()

    @property
    def pids(self) -> list[int]:
        """The ranks' processes."""
        return [rank.pid for rank in self._ranks]

    def call(self, method: str, *args: Any) -> list[Any]:
        """What the method of each rank's object returned, in the order of the ranks.

        Raises:
            RuntimeError: a rank failed or died; its text is in it.
        """
        for pipe in self._pipes:
            pipe.send((method, args))
        found: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(_PATIENCE_S):
                raise RuntimeError(f"rank {rank} did not answer {method} in {_PATIENCE_S:.0f} s")
            try:
                fault, answer = pipe.recv()
            except EOFError as err:
                raise RuntimeError(f"rank {rank} died in {method}") from err
            if fault:
                raise RuntimeError(f"rank {rank}, {method}: {fault}")
            found.append(answer)
        return found


def _serve(
    pipe: Connection,
    rank: int,
    world: int,
    port: int,
    make: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch

    from diptych.cluster.engine import join_group

    torch.set_num_threads(1)
    join_group(rank, world, "127.0.0.1", port, gpu=False)
    made: Any = None
    while True:
        try:
            method, words = pipe.recv()
        except EOFError:
            return
        try:
            made = made or make(rank, world, *args)
            answer = None if method == "__class__" else getattr(made, method)(*words)
            pipe.send(("", answer))
        except Exception:
            pipe.send((traceback.format_exc(), None))
