"""Traps of threads: what others ask of a base while an adapter reads it is answered as if no adapter existed.

The table in tests/traps/test_traps.py says where all traps are tested. LENS_ADAPTER_LOAD_SECONDS=60 loads longer.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import accelerate
import pytest
import torch
import transformers

from lens_adapter.errors import LensError
from lens_adapter.vlm import base as base_room
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import capture, prefill
from lens_adapter.vlm.replica import replicated
from tests.tiny.adapters import GREEDY, hooks_in, marks_on, ready_inputs, same_output, tiny_adapter, tiny_trio
from tests.tiny.models import IMPLEMENTATIONS, tiny_inputs, tiny_model
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

SECONDS = float(os.environ.get("LENS_ADAPTER_LOAD_SECONDS", 3))
IMAGE, PROMPTS = noise_image(50, 70), ["the cat", "a dog"]
WANTED = {"tap_layer": 2, "layers": [1, 2]}


def in_a_thread(work: Callable[[], object]) -> object:
    """What `work` returns or raises, in a thread of its own."""
    said: list[object] = []

    def run() -> None:
        try:
            with torch.no_grad():
                said.append(work())
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert said, "it does not come to an end"
    return said[0]


def load(seconds: float, **jobs: Callable[[], bool]) -> Counter[tuple[str, str]]:
    """How often each job, all at once in threads of their own, was right, wrong, or raised what."""
    found: Counter[tuple[str, str]] = Counter()
    end = time.monotonic() + seconds

    def run(name: str, job: Callable[[], bool]) -> None:
        while time.monotonic() < end:
            try:
                with torch.no_grad():
                    found[name, "right" if job() else "wrong"] += 1
            except Exception as error:
                found[name, f"{type(error).__name__}: {error}"] += 1

    threads = [threading.Thread(target=run, args=job) for job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def only_right(found: Counter[tuple[str, str]], *names: str) -> None:
    assert {key: count for key, count in found.items() if key[1] != "right"} == {}
    assert all(found[name, "right"] > 0 for name in names), found


def users(model, processor) -> dict[str, Callable[[], bool]]:
    """What a user asks of a base, each with whether the answer is that of the base alone."""
    asked, other = ready_inputs(processor), ready_inputs(processor, "one thing", "another")
    wanted = {"output_hidden_states": True, "output_attentions": model.config._attn_implementation == "eager"}
    with torch.no_grad():
        tokens, truth = model.generate(**asked, **GREEDY), model(**other, **wanted)

    def generate() -> bool:
        return torch.equal(model.generate(**asked, **GREEDY), tokens)

    def forward() -> bool:
        got = model(**other, **wanted)
        pairs = [(got.logits, truth.logits), *zip(got.hidden_states, truth.hidden_states, strict=True)]
        pairs += zip(got.attentions or (), truth.attentions or (), strict=True)
        return all(torch.equal(*pair) for pair in pairs)

    return {"generate": generate, "forward": forward}


def adapters(adapter, model, processor) -> dict[str, Callable[[], bool]]:
    """What is asked of an adapter, each with whether the answer is that without others."""
    inputs = ready_inputs(processor)
    segmented = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    with torch.no_grad(), adapter.capture(layers=[0, 1, 2]) as truth:
        logits = model(**inputs).logits

    def segment() -> bool:
        return same_output(adapter.segment(IMAGE, PROMPTS, return_logits=True), segmented)

    def record() -> bool:
        with adapter.capture(layers=[0, 1, 2]) as signals:
            same = torch.equal(model(**inputs).logits, logits)
        rows = [torch.equal(signals.attention[layer], truth.attention[layer]) for layer in (0, 1, 2)]
        return same and not signals.steps and torch.equal(signals.hidden, truth.hidden) and all(rows)

    return {"segment": segment, "capture": record}


# -- under load


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_four_threads_on_one_base(attention):
    adapter, model, processor = tiny_trio("llava", attention=attention)
    jobs = users(model, processor) | adapters(adapter, model, processor)
    content, marks = model.config.to_json_string(), marks_on(model)
    if transformers.__version__ < "5":
        # A forward that collects hidden states takes those of all other forwards of the same moment for its own.
        only_right(load(SECONDS / 2, forward=jobs.pop("forward"), segment=jobs["segment"]), "segment")
    only_right(load(SECONDS, **jobs), *jobs)
    assert not hooks_in(model) and marks_on(model) == marks and model.config.to_json_string() == content
    assert adapter.base._can_share(None)  # no race has made it run anew for every prompt


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl"])
def test_a_base_that_remembers_positions(architecture):
    """One `generate` at a time is all that such a base can do, but for readings of ours."""
    adapter, model, processor = tiny_trio(architecture)
    jobs = {"generate": users(model, processor)["generate"], "segment": adapters(adapter, model, processor)["segment"]}

    def chat() -> bool:
        return adapter.base.answers([IMAGE], ["the cat?"], max_new_tokens=3) == said

    said = adapter.base.answers([IMAGE], ["the cat?"], max_new_tokens=3)
    route, yes = adapter.route, adapter.route("the cat", IMAGE)
    found = load(SECONDS, **jobs, chat=chat, route=lambda: route("the cat", IMAGE) == yes)
    only_right(found, *jobs, "chat", "route")


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_base(where, tmp_path):
    model, processor = tiny_pair("llava")
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    adapter = tiny_adapter(model, processor)
    jobs = {"generate": users(model, processor)["generate"], "segment": adapters(adapter, model, processor)["segment"]}
    only_right(load(SECONDS, **jobs), *jobs)
    assert all(parameter.is_meta for parameter in model.parameters())


# -- one by one


def test_in_a_capture_other_threads_are_not_recorded():
    model, inputs = tiny_model("llava"), tiny_inputs("llava")
    anatomy = find_anatomy(model)
    expected = prefill(anatomy, inputs, **WANTED)
    no_forward = pytest.raises(LensError, match="in the thread that opened it")
    with no_forward, capture(anatomy, **WANTED):
        in_a_thread(lambda: model(**inputs))
    with torch.no_grad(), capture(anatomy, **WANTED) as signals:
        in_a_thread(lambda: model.generate(**inputs, **GREEDY))
        model(**inputs)
        in_a_thread(lambda: model(**inputs))
    assert signals.steps == [] and torch.equal(signals.hidden, expected.hidden)


def test_between_lending_and_handing_back_another_thread_sees_nothing():
    """In the middle of a forward of ours, at every module, the user asks."""
    model, processor = tiny_pair("llava", attention="sdpa")
    jobs, inputs = users(model, processor), ready_inputs(processor)
    modules, answers = find_anatomy(model).layers[1].modules(), []

    def ask(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            answers.extend(in_a_thread(job) for job in jobs.values())

    handles = [module.register_forward_pre_hook(ask) for module in modules]
    with torch.no_grad(), capture(find_anatomy(model), **WANTED):
        model(**inputs)
    prefill(find_anatomy(model), inputs, **WANTED)
    for handle in handles:
        handle.remove()
    assert len(answers) > 20 and all(answer is True for answer in answers)


def test_two_threads_capture_at_once():
    model, inputs = tiny_model("llava", attention="sdpa"), tiny_inputs("llava")
    anatomy, own = find_anatomy(model), find_anatomy(model).attentions[1].config
    expected = prefill(anatomy, inputs, **WANTED)
    with torch.no_grad(), capture(anatomy, **WANTED) as mine:
        other = in_a_thread(lambda: prefill(anatomy, inputs, **WANTED))
        with ExitStack() as stack:
            theirs = in_a_thread(lambda: stack.enter_context(capture(anatomy, **WANTED)))
            model(**inputs)
            assert theirs.hidden is None
            with pytest.raises(LensError, match="No forward"):
                stack.close()
    assert torch.equal(mine.attention[1], expected.attention[1])
    assert torch.equal(other.attention[1], expected.attention[1])
    assert anatomy.attentions[1].config is own and not hooks_in(model)


def test_modes_that_are_changed_meanwhile_stay():
    adapter, model, _ = tiny_trio("llava")
    layers = find_anatomy(model).layers

    def change(*_: object) -> None:
        model.train()
        model.config.new = 1

    handle = layers[0].register_forward_pre_hook(change)
    out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    handle.remove()
    assert all(module.training for module in model.modules()) and model.config.new == 1
    assert same_output(adapter.segment(IMAGE, PROMPTS, return_logits=True), out)
    assert all(module.training for module in model.modules())


def test_a_reading_leaves_what_the_user_is_at():
    """Hooks of a capture that is open are not those of a reading inside it, nor is its config."""
    model, inputs = tiny_model("llava"), tiny_inputs("llava")
    anatomy = find_anatomy(model)
    with torch.no_grad(), capture(anatomy, **WANTED) as signals:
        with replicated(anatomy) as private:
            assert not hooks_in(private.model) and private.attentions[1].config is private.decoder.config
            private.model(**inputs)
        assert signals.hidden is None
        model(**inputs)
    assert signals.hidden is not None


def test_a_replica_shares_tensors_and_nothing_else():
    model = tiny_model("qwen2_vl").train()
    with replicated(find_anatomy(model)) as private:
        own, theirs = list(private.model.parameters()), list(model.parameters())
        assert all(one is other for one, other in zip(own, theirs, strict=True))
        shared = {id(module) for module in model.modules()} & {id(module) for module in private.model.modules()}
        kinds = {type(module).__name__ for module in private.model.modules() if id(module) in shared}
        assert kinds <= {"Linear", "Embedding", "LayerNorm", "Conv2d", "Conv3d"}
        assert not any(module.training for module in private.model.modules() if id(module) not in shared)
        private.model.model.rope_deltas = 1
        private.model.register_forward_pre_hook(print)
    assert model.model.rope_deltas is None and not hooks_in(model) and model.training
    assert len(list(model.parameters())) == len(theirs)


def test_each_module_is_copied_by_what_itself_holds():
    """Modules of one kind are copied in one way, but only as far as they hold the same kinds of things."""
    model = tiny_model("llava", num_hidden_layers=4)
    anatomy = find_anatomy(model)
    first, *others = anatomy.layers
    for layer, held in zip(others, [first, partial(first.forward, use_cache=False), None], strict=True):
        vars(layer)["held"] = held  # no submodule
    handle = others[1].register_forward_hook(print)
    with replicated(anatomy) as private:
        own = private.layers[0]
        assert own is not first and private.layers[1].held is own and private.layers[2].held.func.__self__ is own
        assert private.layers[3].held is None
        assert [len(layer._forward_hooks) for layer in private.layers] == [0, 0, 1, 0]
    handle.remove()
    others[0].held, others[2].dropout = None, torch.nn.Dropout()
    others[1].input_layernorm.weight = torch.nn.Parameter(torch.ones(3))
    with replicated(anatomy) as private:  # nothing is remembered of the one before
        assert private.layers[1].held is None and not hooks_in(private.model)
        assert private.layers[3].dropout is not others[2].dropout and not private.layers[3].dropout.training
        assert private.layers[2].input_layernorm.weight is others[1].input_layernorm.weight


@pytest.mark.parametrize("way", ["closure", "twice", "method"])
def test_a_forward_of_the_users_own(way):
    model, inputs = tiny_model("llava"), tiny_inputs("llava")
    anatomy, calls = find_anatomy(model), []
    expected = prefill(anatomy, inputs, **WANTED)

    def wrapped(forward):
        def call(*args, **kwargs):
            calls.append(call.__name__)  # holds itself
            return forward(*args, **kwargs)

        return call

    for module in (model, anatomy.decoder, anatomy.layers[1]):
        forward = module.forward
        module.forward = {"closure": wrapped(forward), "twice": wrapped(wrapped(forward)), "method": forward}[way]
    got = prefill(anatomy, inputs, **WANTED)
    assert torch.equal(got.hidden, expected.hidden) and torch.equal(got.attention[1], expected.attention[1])
    assert len(calls) == {"closure": 3, "twice": 6, "method": 0}[way]


# -- compiled code


class Counting:
    def __init__(self) -> None:
        self.runs = self.graphs = 0

    def __call__(self, graph, inputs, **options):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


@pytest.fixture
def backend():
    torch.compiler.reset()
    yield Counting()
    torch.compiler.reset()


def test_compiled_code_of_another_thread_does_not_rest(backend):
    model, inputs = tiny_model("llava", attention="sdpa", num_hidden_layers=3), tiny_inputs("llava")
    model.compile(backend=backend)
    with torch.no_grad():
        logits = model(**inputs).logits
    for opened in (lambda: capture(find_anatomy(model), **WANTED), lambda: replicated(find_anatomy(model))):
        with ExitStack() as stack:
            stack.enter_context(opened())
            before = backend.runs
            assert torch.equal(in_a_thread(lambda: model(**inputs).logits), logits)
            assert backend.runs > before
            with torch.no_grad():
                model(**inputs)


def test_a_function_is_compiled_elsewhere_while_it_rests_here(backend):
    model = tiny_model("llava")
    function = torch.compile(torch.sin, backend=backend)
    with torch.no_grad(), capture(find_anatomy(model), **WANTED):
        function(torch.ones(3))
        assert backend.runs == 0
        in_a_thread(lambda: function(torch.ones(3)))
        assert backend.runs == 1
        model(**tiny_inputs("llava"))


# -- processes


def in_a_fork(work: Callable[[], bool], patience: float = 60) -> int | None:
    """Exit code of a child that is forked here and now: 0 where `work` is True."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_reads():
    adapter, model, _ = tiny_trio("llava")
    out = adapter.segment(IMAGE, PROMPTS, return_logits=True)
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with adapter.base.turn(), ExitStack() as stack:
            stack.enter_context(pytest.raises(LensError))
            stack.enter_context(adapter.capture())
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)

    def work() -> bool:
        torch.set_num_threads(1)
        return same_output(adapter.segment(IMAGE, PROMPTS, return_logits=True), out)

    code = in_a_fork(work)
    over.set()
    thread.join(60)
    assert code == 0 and model in base_room._turns


# -- what waits for what


def test_a_chat_does_not_wait_for_a_picture_that_is_segmented():
    adapter, _, _ = tiny_trio("llava")
    with adapter.base.turn():  # as while it is segmented
        assert in_a_thread(lambda: adapter.base.answers([IMAGE], ["the cat?"], max_new_tokens=2))


# -- a prompt in chunks


@pytest.mark.parametrize("size", [16, 1000])
def test_a_chunked_prompt_is_refused(size):
    model, inputs = tiny_model("llava"), tiny_inputs("llava")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    refused = pytest.raises(LensError, match=f"prefill_chunk_size={size}.*Leave prefill_chunk_size out")
    with refused, torch.no_grad(), capture(find_anatomy(model), **WANTED):
        model.generate(**text, **GREEDY, prefill_chunk_size=size)
    assert not hooks_in(model)
    with capture(find_anatomy(model), **WANTED) as signals:  # a prompt that goes on is a step, in whatever length
        cache = model(**text, use_cache=True).past_key_values
        more = {"input_ids": text["input_ids"][:, :3], "attention_mask": torch.ones(2, text["input_ids"].shape[1] + 3)}
        model(**more, past_key_values=cache)
    assert signals.steps[0].hidden.shape[1] == 3
