"""The kernels that no CPU test can run: what they are given is turned into the same rows."""

from __future__ import annotations

import copy
import pickle
import threading
from contextlib import ExitStack

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface

from lens_adapter.vlm.attention import AttentionCall, attention_rows, tap_attention
from tests.tiny.models import tiny_language_model

QUERIES, KEYS = 5, 9  # 4 keys are cached


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, QUERIES, 8), (2, 2, KEYS, 8), (2, 2, KEYS, 8))
    return [torch.randn(shape, generator=generator) * 2 for shape in shapes]


@pytest.fixture
def attention():
    return tiny_language_model().model.layers[0].self_attn


def call(attention, kernel, states, mask, **options):
    return AttentionCall(attention, kernel, *states, mask, (), {"scaling": attention.scaling, **options})


def truth(attention, states, allowed):
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return attention_rows(call(attention, "eager", states, mask), torch.arange(-QUERIES, 0).expand(2, -1))


@pytest.fixture
def causal():
    """bool (1, 1, q, T): the queries are the last of the keys."""
    return (torch.arange(KEYS) <= torch.arange(KEYS - QUERIES, KEYS)[:, None])[None, None]


FROM_END = torch.tensor([[-1, -4], [-2, -3]])


def chosen(rows):
    return torch.stack([rows[sample][:, FROM_END[sample]] for sample in range(2)])


def test_flash_without_mask_is_causal_to_the_last_key(attention, states, causal):
    rows = attention_rows(call(attention, "flash_attention_2", states, None), FROM_END)
    torch.testing.assert_close(rows, chosen(truth(attention, states, causal)))


def test_flash_with_padding_and_sliding_window(attention, states, causal):
    padding = torch.ones(2, KEYS, dtype=torch.long)
    padding[1, :2] = 0
    places = torch.arange(KEYS - QUERIES, KEYS)[:, None]
    allowed = causal & (torch.arange(KEYS) > places - 3) & padding[:, None, None].bool()
    rows = attention_rows(call(attention, "flash_attention_2", states, padding, sliding_window=3), FROM_END)
    torch.testing.assert_close(rows, chosen(truth(attention, states, allowed)))


def test_flash_that_is_not_causal(attention, states):
    rows = attention_rows(call(attention, "flash_attention_2", states, None, is_causal=False), FROM_END)
    everything = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool)
    torch.testing.assert_close(rows, chosen(truth(attention, states, everything)))


def test_sdpa_without_mask_is_causal_from_the_first_key(attention, states):
    allowed = (torch.arange(KEYS) <= torch.arange(QUERIES)[:, None])[None, None]
    rows = attention_rows(call(attention, "sdpa", states, None), FROM_END)
    torch.testing.assert_close(rows, chosen(truth(attention, states, allowed)))


def test_flex_block_mask(attention, states, causal):
    def visible(batch, head, query, key):
        return (key <= query + KEYS - QUERIES) & (key >= batch)

    mask = create_block_mask(visible, 2, None, QUERIES, KEYS, device="cpu")
    allowed = causal & (torch.arange(KEYS) >= torch.arange(2)[:, None, None, None])
    rows = attention_rows(call(attention, "flex_attention", states, mask), FROM_END)
    torch.testing.assert_close(rows, chosen(truth(attention, states, allowed)))


def test_position_bias_is_cut_to_the_rows(attention, states, causal, monkeypatch):
    bias = torch.randn(1, 4, QUERIES, KEYS, generator=torch.Generator().manual_seed(1))
    seen = {}

    def eager(module, query, key, value, mask, position_bias, **_):
        seen["bias"] = position_bias
        return None, torch.zeros(query.shape[:3] + key.shape[2:3])

    monkeypatch.setattr("lens_adapter.vlm.attention.attention_kernels", lambda _: (None, eager))
    attention_rows(call(attention, "sdpa", states, causal, position_bias=bias), FROM_END)
    assert torch.equal(seen["bias"], chosen(bias.expand(2, -1, -1, -1)))


def test_rows_are_differentiable(attention, states):
    query = states[0].requires_grad_()
    rows = attention_rows(call(attention, "sdpa", states, None), FROM_END)
    rows.square().sum().backward()
    assert query.grad[0, :, -1].abs().max() > 0 and query.grad[0, :, 0].abs().max() == 0


def test_the_lent_name_passes_for_the_kernel_and_is_found_as_ours(attention):
    attention.config._attn_implementation = "sdpa"
    own, before = attention.config, set(AttentionInterface._global_mapping)
    with tap_attention(attention, lambda _: None):
        lent = attention.config
        name = lent._attn_implementation
        assert name == "sdpa" and name in ("eager", "sdpa") and name.startswith("sdpa")
        assert own._attn_implementation == "sdpa" and lent is not own and isinstance(lent, type(own))
        interface = AttentionInterface()
        assert interface[name] is not interface["sdpa"]
        assert lent._attn_implementation is not name  # registered again, which changes nothing
        keys = set(AttentionInterface._global_mapping)
        assert before <= keys and len([key for key in keys if key == "sdpa"]) == 2
    assert attention.config is own
    assert not any(vars(key) for key in keys if type(key) is not str)  # nobody's model is kept alive


def test_the_lent_config_is_the_modules_own_to_everybody_else(attention):
    attention.config._attn_implementation = "sdpa"
    own, seen = attention.config, []
    with tap_attention(attention, lambda _: None):
        lent = attention.config

        def look():
            seen.append(lent._attn_implementation)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert type(seen[0]) is str
        lent.new = 1  # whoever writes to it writes to the module's own
        assert own.new == 1
        for other in (copy.copy(lent), copy.deepcopy(lent), pickle.loads(pickle.dumps(lent))):
            assert type(other) is type(own) and other.to_dict() == own.to_dict()
        lent._attn_implementation = "eager"
        assert own._attn_implementation == "eager"


def test_taps_end_in_whatever_order(attention):
    own, one, two = attention.config, ExitStack(), ExitStack()
    one.enter_context(tap_attention(attention, lambda _: None))
    two.enter_context(tap_attention(attention, lambda _: None))
    one.close()
    assert attention.config is not own
    two.close()
    assert attention.config is own
