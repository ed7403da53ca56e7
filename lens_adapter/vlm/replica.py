"""A model to read in private: every module anew, every tensor shared.

A forward leaves much on modules: hooks that it needs, modes, positions remembered for `generate`, weights that come and
go with offloading, an exit in the middle. On a replica all that is nobody else's, whatever other threads do with the
model at the same time. (torch's DataParallel gives each of its threads such a replica, too.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from accelerate.hooks import ModelHook, SequentialHook
from torch import nn
from torch._dynamo import OptimizedModule
from torch.jit import ScriptModule
from transformers import PretrainedConfig

from lens_adapter.vlm.anatomy import Anatomy
from lens_adapter.vlm.attention import WatchedConfig
from lens_adapter.vlm.state import evaluation_mode
from lens_adapter.vlm.threads import ThreadHook

# What every module registers its parameters, buffers and hooks in.
_REGISTERS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))
_TENSORS = frozenset(("_parameters", "_buffers"))  # registers that hold neither modules nor hooks
# What is left as it is, as most attributes are.
_VALUES = frozenset((bool, int, float, str, type(None), dict, list, tuple, set, torch.dtype))
_STATELESS = frozenset((nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv2d, nn.Conv3d))

Copies = dict[Any, Any]  # by original: of modules, and of functions and maps that belong to them


@contextmanager
def replicated(anatomy: Anatomy) -> Iterator[Anatomy]:
    """The anatomy of a replica of the model, in evaluation mode and without code that torch.compile made.

    Hooks that are on the model are on the replica as well. It is good for forwards until the context closes. A model
    that `fully_shard` has sharded cannot have one, since its shards are gathered into its own modules: it is used
    itself, in evaluation mode, and is not private.
    """
    modules = _modules_of(anatomy.model)
    if sharded := _sharded(modules):
        root: Any = anatomy.model
        with evaluation_mode(root):
            # `generate` runs the vision tower before the model's forward, which would gather what the tower needs.
            if root in sharded:
                root.unshard()
            try:
                yield anatomy
            finally:
                if root in sharded:
                    root.reshard()
        return
    copies = _replicate(modules)
    try:
        yield replace(
            anatomy,
            model=copies[anatomy.model],
            layers=copies.get(anatomy.layers, anatomy.layers),
            attentions=[copies.get(attention, attention) for attention in anatomy.attentions],
            path=list(dict.fromkeys(copies.get(module, module) for module in anatomy.path)),
        )
    finally:
        for one in copies.values():
            if isinstance(one, nn.Module):  # weights that offloading has loaded go at once
                one._parameters.clear()
                one._buffers.clear()


def _modules_of(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, but for those that may be shared: half of them leave nothing on themselves, and what
    TorchScript made has no attributes to copy."""
    found, seen = [model], {model}
    for module in found:  # which grows meanwhile
        for child in list(module._modules.values()):
            if child is None or child in seen:
                continue
            seen.add(child)
            bare = type(child) in _STATELESS and "forward" not in vars(child) and not child._forward_pre_hooks
            if not bare and not isinstance(child, ScriptModule):
                found.append(child)
    return found


def _sharded(modules: Sequence[nn.Module]) -> set[nn.Module]:
    """The modules that were given to `fully_shard`."""
    if not torch.distributed.is_available():
        return set()
    from torch.distributed.fsdp import FSDPModule

    return {module for module in modules if isinstance(module, FSDPModule)}


def _replicate(modules: Sequence[nn.Module]) -> Copies:
    """The modules' copies, by original. Some hundreds are made at every reading, so each takes few steps."""
    wrappers = [module for module in modules if isinstance(module, OptimizedModule)]
    plain = [module for module in modules if not isinstance(module, OptimizedModule)]
    copies: Copies = {module: object.__new__(type(module)) for module in plain}
    for wrapper in wrappers:
        inner: nn.Module = wrapper
        while isinstance(inner, OptimizedModule):
            inner = inner._orig_mod
        copies[wrapper] = copies.get(inner, inner)
    steps: dict[Any, _Steps] = {}  # modules whose attributes have the same names and types are copied in the same way
    for module in plain:
        own = vars(module).copy()
        kind = (*own, *map(type, own.values()))
        if kind not in steps:
            steps[kind] = _steps(own)
        for name in steps[kind].registers:
            value = own[name]
            own[name] = _register_copied(value, copies) if value and name not in _TENSORS else value.copy()
        for name in steps[kind].rebound:
            own[name] = _rebound(own[name], copies)
        own["training"], own["_compiled_call_impl"] = False, None
        object.__setattr__(copies[module], "__dict__", own)
    return copies


class _Steps(NamedTuple):
    """Names of a module's attributes that are not simply taken over: registers, and what may hold on to modules."""

    registers: list[str]
    rebound: list[str]


def _steps(attributes: dict[str, Any]) -> _Steps:
    registers = [name for name in attributes if name in _REGISTERS]
    rebound = [name for name, value in attributes.items() if name not in _REGISTERS and not _is_plain(type(value))]
    return _Steps(registers, rebound)


def _is_plain(kind: type) -> bool:
    """Whether `_rebound` leaves values of a type as they are."""
    return kind in _VALUES or (issubclass(kind, PretrainedConfig) and not issubclass(kind, WatchedConfig))


def _register_copied(register: Any, copies: Copies) -> Any:
    """The modules or hooks of a module, but for hooks of a `capture` that is open."""
    if not isinstance(register, dict):
        return register.copy()
    items = [item for item in register.copy().items() if not isinstance(item[1], ThreadHook)]
    return type(register)((key, copies.get(one, one) if isinstance(one, nn.Module) else one) for key, one in items)


def _rebound(value: Any, copies: Copies) -> Any:
    """What a module has in an attribute, for its copy: modules and functions that hold on to modules lead to the copies
    instead; all else is as it is."""
    if isinstance(value, nn.Module):
        return copies.get(value, value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, copies))
    if isinstance(value, partial):  # `forward` under a hook of accelerate
        fresh: Any = partial(_rebound(value.func, copies), *(_rebound(arg, copies) for arg in value.args))
        fresh.keywords.update(value.keywords)
        vars(fresh).update(vars(value))  # says where the signature is
        return fresh
    if isinstance(value, FunctionType):
        return _function_rebound(value, copies)
    if isinstance(value, WatchedConfig):
        return value.lender
    if isinstance(value, ModelHook):
        return _hook_copied(value, copies)
    return value


def _function_rebound(function: FunctionType, copies: Copies) -> Any:
    if hasattr(function, "_torchdynamo_orig_callable"):  # what torch.compile made of this
        return _rebound(function._torchdynamo_orig_callable, copies)
    if function.__globals__["__name__"] == "transformers.utils.generic" and hasattr(function, "__wrapped__"):
        return _rebound(function.__wrapped__, copies)  # transformers 4 collects a layer's output for whoever asked
    if function not in copies and function.__closure__:
        cells = tuple(CellType() for _ in function.__closure__)
        fresh = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
        fresh.__kwdefaults__ = function.__kwdefaults__
        vars(fresh).update(vars(function))
        copies[function] = fresh  # before its cells are filled: it may hold itself
        for cell, theirs in zip(cells, function.__closure__, strict=True):
            cell.cell_contents = _rebound(theirs.cell_contents, copies)
    return copies.get(function, function)


def _hook_copied(hook: ModelHook, copies: Copies) -> ModelHook:
    """Hooks of accelerate remember what they have loaded, and who shares it."""
    fresh: Any = copy.copy(hook)
    if isinstance(hook, SequentialHook):
        fresh.hooks = tuple(_hook_copied(one, copies) for one in hook.hooks)
    if loaded := getattr(hook, "tied_params_map", None):
        fresh.tied_params_map = copies.setdefault(id(loaded), {key: dict(held) for key, held in list(loaded.items())})
    return fresh
