"""Hooks of ours in the registers of a module: put there and taken out whole, and in no copy of the module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from lens_adapter.vlm.threads import ThreadHook, fork_safe_lock

# Where a module keeps its hooks, and where what it knows of each of them, by the same key.
_REGISTERS = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}
_changing = fork_safe_lock()  # held while registers are


def add_hook(module: nn.Module, kind: str, hook: ThreadHook, **options: bool) -> None:
    """Register a hook; `remove_hooks` takes it out again, by its owner.

    Args:
        kind: "forward_pre_hook" or "forward_hook".
        options: of `register_forward_hook` and its like.
    """
    with _changing:
        for hooks, register in _registers_of(module):
            register.__reduce_ex__ = _WithoutOurs(hooks, register)  # type: ignore[method-assign]  # of this one object
        getattr(module, f"register_{kind}")(hook, **options)


def remove_hooks(module: nn.Module, owner: object) -> None:
    """Take out all hooks of an owner, wherever registering or removing them was interrupted."""
    with _changing:
        for kind, facts in _REGISTERS.items():
            hooks = getattr(module, kind)
            ours = [key for key, hook in list(hooks.items()) if isinstance(hook, ThreadHook) and hook.owner is owner]
            for name in (*facts, kind):  # the hook itself last: as long as it is there, it is found
                for key in ours:
                    getattr(module, name).pop(key, None)
        if not any(isinstance(hook, ThreadHook) for hooks, _ in _registers_of(module) for hook in list(hooks.values())):
            for _, register in _registers_of(module):
                vars(register).pop("__reduce_ex__", None)


def _registers_of(module: nn.Module) -> Iterator[tuple[OrderedDict[int, Any], OrderedDict[int, Any]]]:
    """(the hooks, one of the registers of them), of all registers."""
    for kind, facts in _REGISTERS.items():
        for name in (kind, *facts):
            yield getattr(module, kind), getattr(module, name)


class _WithoutOurs:
    """How `copy.deepcopy` and pickle see a register while hooks of ours are in it: as if they were not."""

    def __init__(self, hooks: OrderedDict[int, Any], register: OrderedDict[int, Any]) -> None:
        self.hooks, self.register = hooks, register

    def __call__(self, _: Any) -> tuple[Callable[..., Any], tuple[()], None, None, Iterator[tuple[int, Any]]]:
        ours = {key for key, hook in list(self.hooks.items()) if isinstance(hook, ThreadHook)}
        others = [item for item in list(self.register.items()) if item[0] not in ours]
        return type(self.register), (), None, None, iter(others)
