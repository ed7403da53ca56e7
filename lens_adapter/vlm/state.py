"""What a reading leaves as it was: modes of modules, and tensors that a model remembers between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lens_adapter.vlm.anatomy import Anatomy


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the mode of every submodule as before."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def state_kept(anatomy: Anatomy) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's mode, and the tensors the model remembers, as before.

    Some models keep tensors between calls in plain attributes around the decoder (Qwen2-VL: rope_deltas), on which a
    `generate` that is under way depends.
    """
    attributes = [(module, dict(vars(module))) for module in anatomy.path]
    try:
        with evaluation_mode(anatomy.model):
            yield
    finally:
        for module, before in attributes:
            for name, value in dict(vars(module)).items():
                if name not in before and isinstance(value, Tensor):
                    delattr(module, name)
                elif isinstance(value, Tensor) or isinstance(before.get(name), Tensor):
                    setattr(module, name, before[name])
