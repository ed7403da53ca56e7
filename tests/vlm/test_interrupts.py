"""Ctrl-C at any moment, and copies made in the middle of a capture: nothing of ours stays anywhere."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lens_adapter.vlm.registers import add_hook, remove_hooks
from lens_adapter.vlm.state import evaluation_mode, undone
from lens_adapter.vlm.threads import ThreadHook
from tests.attacks.interrupts import run
from tests.tiny.adapters import hooks_in, ready_inputs, tiny_trio


def test_interrupts_at_random_moments_leave_nothing():
    found = run(60, seed=0, fit=False)
    assert found["by_time"] > 10 and found["by_line"] > 10
    assert (found["left"], found["other_errors"]) == (0, 0)


def test_what_an_interrupt_cuts_short_is_undone_all_the_same():
    done: list[str] = []

    def undo() -> None:
        if not done:
            done.append("begun")
            raise KeyboardInterrupt
        done.append("finished")

    with pytest.raises(KeyboardInterrupt), undone(undo):
        pass
    assert done == ["begun", "finished"]


def test_a_mode_is_as_it_was_after_an_interrupt_that_cut_its_return_short():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with pytest.raises(KeyboardInterrupt), evaluation_mode(model):
        assert not any(part.training for part in model.modules())
        raise KeyboardInterrupt
    assert all(part.training for part in model.modules())


def test_removing_takes_the_owners_hooks_alone_and_is_repeatable():
    module, mine, yours = nn.Linear(1, 1), object(), object()
    users = module.register_forward_hook(lambda *_: None)
    for owner in (mine, yours):
        add_hook(module, "forward_hook", ThreadHook(print, owner), always_call=True)
        add_hook(module, "forward_pre_hook", ThreadHook(print, owner), with_kwargs=True)
    for _ in range(2):
        remove_hooks(module, mine)
        assert [len(module._forward_hooks), len(module._forward_pre_hooks)] == [2, 1]
        assert len(module._forward_hooks_always_called) == len(module._forward_pre_hooks_with_kwargs) == 1
    remove_hooks(module, yours)
    assert [*module._forward_hooks] == [users.id] and not vars(module._forward_hooks)
    assert not module._forward_pre_hooks and not module._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_copy_of_the_base_made_inside_capture_carries_no_hooks(attention):
    adapter, model, processor = tiny_trio("llava", attention=attention)
    inputs = ready_inputs(processor)
    handle = model.get_submodule("model.language_model").register_forward_hook(_a_users_hook)
    with torch.no_grad(), adapter.capture(layers=[1, 2]) as signals:
        # Before the first forward: what transformers 5 hooks in at that cannot be pickled.
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _saved_and_loaded(model)]
        logits = model(**inputs).logits
        copies.append(copy.deepcopy(model))
        for copied in copies:
            assert hooks_in(copied) == ["model.language_model._forward_hooks"]  # the user's, as he would have it
            flags = [module._forward_hooks_always_called for module in copied.modules()]
            assert not any(flags) and not any(vars(register) for register in flags)
            assert type(copied.model.language_model.layers[1].self_attn.config) is type(model.config.text_config)
            assert torch.equal(copied(**inputs).logits, logits)
        assert not signals.steps  # they were not recorded
    handle.remove()
    assert not hooks_in(model)


def _a_users_hook(*_: object) -> None:
    """Can be pickled."""


def _saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
