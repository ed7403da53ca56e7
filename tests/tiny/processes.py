"""Processes beside the one that tests: clean, and quick to start."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

PATIENCE = 300  # seconds, on a busy machine

# One clean process imports all this once, and those that the tests start are forked off it: to import torch and
# transformers takes longer than what they do. A process of pytest has one such server, for all its tests.
SERVER = torch.multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lens_adapter.training.run", "lens_adapter.annotation.run", "tests.tiny.adapters"])


def run_alone(target: Callable[..., None], *arguments: Any) -> int:
    """Call `target` in a process that knows nothing of this one; its exit code, negative where a signal ended it."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        pytest.fail("The process does not come to an end.")
    return process.exitcode


def run_two(target: Callable[..., None], *arguments: Any) -> None:
    """Call `target(rank, *arguments)` in two processes, in the environment that torchrun would give them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    two = torch.multiprocessing.start_processes(
        _one_of_two, (port, target, arguments), nprocs=2, start_method="forkserver", join=False
    )
    end = time.monotonic() + PATIENCE
    while not two.join(timeout=1):
        if time.monotonic() > end:
            for process in two.processes:
                process.kill()
            pytest.fail("The two processes wait for each other.")


def _one_of_two(rank: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target(rank, *arguments)
