from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from functools import cache

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import pipeline

from lens_adapter import LensAdapter, LensOutput, segmentation
from lens_adapter.errors import CheckpointMismatchError, LensError
from tests.tiny.adapters import (
    FUSIONS,
    GREEDY,
    GRID,
    PAIRED,
    assert_close,
    hooks_in,
    learn,
    ready_inputs,
    same_output,
    tiny_adapter,
    tiny_trio,
)
from tests.tiny.models import ARCHITECTURES, HIDDEN_SIZE, NUM_HEADS, NUM_LAYERS
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam, tiny_sam_model

trio = cache(tiny_trio)  # for tests that leave no mark
everywhere = pytest.mark.parametrize(("architecture", "fusion"), GRID)
paired = pytest.mark.parametrize(("architecture", "fusion"), PAIRED)
IMAGES = [noise_image(61, 97), noise_image(84, 40, seed=1), noise_image(33, 33, seed=2)]
PROMPTS = ["the cat", ["a dog", "the large red car on the left"], ["grass"]]


# -- segmenting


@pytest.mark.parametrize("kind", ["path", "text path", "numpy", "torch"])
def test_every_kind_of_image_is_the_same_image(kind, tmp_path):
    adapter, _, _ = trio()
    image = IMAGES[0]
    image.save(tmp_path / "image.png")
    forms = {
        "path": tmp_path / "image.png",
        "text path": str(tmp_path / "image.png"),
        "numpy": np.asarray(image),
        "torch": torch.from_numpy(np.array(image)).permute(2, 0, 1),
    }
    expected = adapter.segment(image, "the cat", return_logits=True)
    assert same_output(adapter.segment(forms[kind], "the cat", return_logits=True), expected)


def test_forms_of_images_and_prompts():
    adapter, _, _ = trio()
    one = adapter.segment(IMAGES[0], "the cat")
    assert isinstance(one, LensOutput) and one.prompts == ["the cat"] and one.masks.shape == (1, 61, 97)
    two = adapter.segment(IMAGES[0], ("the cat", "a dog"))
    assert two.prompts == ["the cat", "a dog"] and two.masks.shape == (2, 61, 97) and two.image.size == (97, 61)
    many = adapter.segment(IMAGES, PROMPTS)
    assert [out.prompts for out in many] == [["the cat"], PROMPTS[1], ["grass"]]
    assert [out.masks.shape for out in many] == [(1, 61, 97), (2, 84, 40), (1, 33, 33)]
    assert isinstance(adapter.segment(tuple(IMAGES[:1]), ("the cat",)), list)
    assert adapter.segment([], []) == []


@everywhere
def test_ranges_shapes_and_frames(architecture, fusion):
    adapter, _, _ = trio(architecture, fusion)
    outs = adapter.segment(IMAGES, PROMPTS, return_logits=True)
    for out, image in zip(outs, IMAGES, strict=True):
        count = len(out.prompts)
        assert out.image_size == (image.height, image.width)
        assert out.masks.shape == out.logits.shape == (count, *out.image_size) and out.masks.dtype == torch.bool
        assert out.scores.shape == (count,) and ((out.scores >= 0) & (out.scores <= 1)).all()
        assert out.heatmaps.shape[0] == count and ((out.heatmaps >= 0) & (out.heatmaps <= 1)).all()
        assert out.heatmaps.amax() > 0 and out.heatmaps.std() > 0
        for points, scores in zip(out.keypoints, out.keypoint_scores, strict=True):
            assert len(points) and ((points >= 0) & (points <= torch.tensor(image.size))).all()
            assert ((scores >= 0) & (scores <= 1)).all()
        for tensor in (out.masks, out.scores, out.logits, out.heatmaps, *out.keypoints, *out.keypoint_scores):
            assert tensor.device.type == "cpu" and not tensor.requires_grad and not tensor.is_inference()
    masks = torch.cat([out.masks.flatten() for out in outs])
    assert 0.01 < masks.float().mean() < 0.99  # or the comparisons in this file would say little


def test_keypoints_point_at_the_heat():
    adapter, _, _ = trio()
    out = adapter.segment(IMAGES[1], ["the cat", "a dog"])
    for heat, points in zip(out.heatmaps, out.keypoints, strict=True):
        height, width = heat.shape
        x, y = (points[0] / torch.tensor([40, 84]) * torch.tensor([width, height])).long().tolist()
        peak = int(heat.argmax())
        assert abs(y - peak // width) <= 1 and abs(x - peak % width) <= 1


@everywhere
def test_a_batch_is_the_same_as_one_by_one(architecture, fusion):
    adapter, _, _ = trio(architecture, fusion)
    alone = [
        adapter.segment(image, prompt, return_logits=True)
        for image, prompts in zip(IMAGES, PROMPTS, strict=True)
        for prompt in ([prompts] if isinstance(prompts, str) else prompts)
    ]
    for batch_size in (None, 1, 3, 100):
        outs = adapter.segment(IMAGES, PROMPTS, batch_size=batch_size, return_logits=True)
        logits = [row for out in outs for row in out.logits]
        for row, out in zip(logits, alone, strict=True):
            torch.testing.assert_close(row, out.logits[0], atol=2e-4, rtol=0)
        heats = [row for out in outs for row in out.heatmaps]
        for row, out in zip(heats, alone, strict=True):
            torch.testing.assert_close(row, out.heatmaps[0], atol=2e-4, rtol=0)
    assert (alone[1].logits - alone[2].logits).abs().max() > 0.1  # same image, other prompt


def test_rows_that_run_together():
    rows = [(0, "a"), (0, "b"), (1, "c"), (1, "d"), (1, "e")]
    assert segmentation._batches(rows, None) == [rows[:2], rows[2:]]
    assert segmentation._batches(rows, 3) == [rows[:3], rows[3:]]
    many = [(0, str(k)) for k in range(segmentation.PROMPTS_TOGETHER + 1)]
    assert segmentation._batches([*many, (1, "z")], None) == [many[:-1], many[-1:], [(1, "z")]]


def test_each_image_is_encoded_once():
    adapter, _, _ = tiny_trio()
    adapter.embedding_cache = None
    batches = []
    adapter.decoder.image_encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    adapter.segment(IMAGES, PROMPTS, batch_size=1)
    assert batches == [1, 1, 1]
    adapter.segment(IMAGES, PROMPTS, batch_size=3)
    assert sum(batches[3:]) == 3


def test_logits_agree_with_masks():
    adapter, _, _ = trio()
    out = adapter.segment(IMAGES[0], ["the cat", "a dog"], return_logits=True)
    certain = (out.logits.sigmoid() - adapter.config.mask_threshold).abs() > 1e-6
    assert torch.equal((out.logits.sigmoid() > adapter.config.mask_threshold)[certain], out.masks[certain])
    assert adapter.segment(IMAGES[0], "the cat").logits is None


def test_mask_threshold():
    adapter, _, _ = trio()
    whole = adapter.segment(IMAGES[0], "the cat", mask_threshold=0, return_logits=True)
    assert whole.masks.all()
    previous = whole.masks
    for threshold in (0.2, np.float32(0.5), 0.8):
        out = adapter.segment(IMAGES[0], "the cat", mask_threshold=threshold, return_logits=True)
        assert torch.equal(out.logits, whole.logits) and torch.equal(out.masks, out.logits.sigmoid() > threshold)
        assert out.masks.sum() < previous.sum() and not (out.masks & ~previous).any()
        previous = out.masks
    config = copy.deepcopy(adapter.config)
    adapter.segment(IMAGES[0], "the cat", mask_threshold=0.9)
    assert adapter.config == config


@everywhere
def test_eager_and_sdpa_give_the_same(architecture, fusion):
    adapter, model, _ = tiny_trio(architecture, fusion)
    eager = adapter.segment(IMAGES, PROMPTS, return_logits=True, batch_size=4)
    model.set_attn_implementation("sdpa")  # while attached: the mirror must follow
    for before, after in zip(eager, adapter.segment(IMAGES, PROMPTS, return_logits=True, batch_size=4), strict=True):
        assert_close(before, after)
    other = tiny_adapter(*tiny_pair(architecture, attention="sdpa"), fusion)
    other.load_state_dict(adapter.state_dict())
    for before, after in zip(eager, other.segment(IMAGES, PROMPTS, return_logits=True, batch_size=4), strict=True):
        assert_close(before, after)


@paired
def test_half_precision_base_with_a_float32_head(architecture, fusion):
    adapter, model, _ = tiny_trio(architecture, fusion)
    model.to(torch.bfloat16)
    out = adapter.segment(IMAGES[1], PROMPTS[1], return_logits=True)
    assert out.logits.isfinite().all() and out.logits.dtype == torch.float32 and out.heatmaps.std() > 0
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_half_precision_head(fusion):
    adapter, model, _ = tiny_trio(fusion=fusion)
    exact = adapter.segment(IMAGES[1], PROMPTS[1], return_logits=True)
    out = adapter.to(torch.bfloat16).segment(IMAGES[1], PROMPTS[1], return_logits=True)
    assert out.logits.dtype == out.scores.dtype == out.heatmaps.dtype == torch.float32
    assert (out.logits - exact.logits).abs().mean() < 0.1 * exact.logits.std()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_modes_are_restored(fusion):
    adapter, model, _ = tiny_trio(fusion=fusion)
    expected = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    adapter.train()
    adapter.decoder.image_encoder.eval()
    model.train()
    model.model.vision_tower.eval()
    modes = [module.training for owner in (adapter, model) for module in owner.modules()]
    assert same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), expected)
    assert [module.training for owner in (adapter, model) for module in owner.modules()] == modes


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_contexts(context):
    adapter, _, processor = tiny_trio()
    expected = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    with context():
        out = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    assert same_output(out, expected)
    learn(adapter, processor)  # nothing of the adapter was made in inference mode


def test_the_base_may_be_edited_while_attached():
    adapter, model, _ = tiny_trio()
    before = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.mul_(-1)
    assert not same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), before)
    attention = model.model.language_model.layers[1].self_attn
    model.model.language_model.layers[1].self_attn = copy.deepcopy(attention)
    with pytest.raises(LensError, match="did not pass the attention of layer 1"):
        adapter.segment(IMAGES[0], "the cat")
    assert not hooks_in(model)
    adapter.attach(model, adapter.base.processor).segment(IMAGES[0], "the cat")


def test_threads_take_turns():
    model, processor = tiny_pair("qwen2_vl")
    adapters = [tiny_adapter(model, processor), tiny_adapter(model, processor, tap_layer=3)]
    expected = [adapter.segment(IMAGES[0], "the cat", return_logits=True) for adapter in adapters]
    outs, start = {}, threading.Barrier(4)

    def work(k: int) -> None:
        start.wait()
        outs[k] = adapters[k % 2].segment(IMAGES[0], "the cat", return_logits=True)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outs) == [0, 1, 2, 3]
    assert all(same_output(outs[k], expected[k % 2]) for k in outs)


# -- capture, prefill, layout


@everywhere
def test_capture_records_the_users_forward(architecture, fusion):
    adapter, model, processor = trio(architecture, fusion)
    inputs = ready_inputs(processor)
    batch, length = inputs["input_ids"].shape
    tap = adapter.config.tap_layer
    seen = []
    handle = model.model.language_model.layers[tap].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), adapter.capture() as signals:
        truth = model(**inputs, output_attentions=True)
    handle.remove()
    assert torch.equal(signals.hidden, seen[0]) and signals.hidden.shape == (batch, length, HIDDEN_SIZE)
    assert list(signals.attention) == (adapter.config.attention_layers or [tap])
    for layer, rows in signals.attention.items():
        assert rows.shape == (batch, NUM_HEADS, 1, length) and rows.dtype == torch.float32
        torch.testing.assert_close(rows, truth.attentions[layer][:, :, -1:], atol=1e-5, rtol=0)
    prefilled = adapter.prefill(inputs)
    torch.testing.assert_close(prefilled.hidden, signals.hidden)
    assert list(prefilled.attention) == adapter.config.attention_layers


def test_capture_arguments():
    adapter, model, processor = trio("qwen2_5_vl")
    inputs = ready_inputs(processor)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        with adapter.capture(query="all", layers=[0, 3]) as signals:
            model(**inputs)
        assert {layer: rows.shape[2] for layer, rows in signals.attention.items()} == {0: length, 3: length}
        with adapter.capture(query=[-2, -1]) as two:
            model(**inputs)
        assert all(rows.shape[2] == 2 for rows in two.attention.values())
        with adapter.capture(attention=False) as bare:
            model(**inputs)
        assert bare.attention == {} and torch.equal(bare.hidden, signals.hidden)
    rows = adapter.prefill(inputs, query="all", layers=[0]).attention
    torch.testing.assert_close(rows[0], signals.attention[0])


def test_capture_of_generate():
    adapter, model, processor = trio("qwen2_vl")
    inputs = ready_inputs(processor)
    with adapter.capture() as signals:
        model.generate(**inputs, **GREEDY)
    assert len(signals.steps) == GREEDY["max_new_tokens"] - 1
    torch.testing.assert_close(signals.hidden, adapter.prefill(inputs).hidden)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layout_lists_the_image_tokens(architecture):
    adapter, model, processor = trio(architecture)
    inputs = ready_inputs(processor)
    for sizes in (None, [(50, 70), (60, 70)]):
        layouts = adapter.layout(inputs, sizes)
        assert len(layouts) == 2
        for ids, layout in zip(inputs["input_ids"], layouts, strict=True):
            image_token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
            assert (ids[layout.positions] == image_token).all()
            assert ((layout.boxes >= 0) & (layout.boxes <= 1)).all()


def test_interleaved_and_nested_adapters():
    model, processor = tiny_pair("llava")
    early, late = tiny_adapter(model, processor, tap_layer=1), tiny_adapter(model, processor, "mirror", tap_layer=3)
    inputs = ready_inputs(processor)
    alone = [adapter.segment(IMAGES[0], "the cat", return_logits=True) for adapter in (early, late)]
    again = [adapter.segment(IMAGES[0], "the cat", return_logits=True) for adapter in (early, late)]
    assert all(map(same_output, alone, again))
    logits = model(**inputs).logits
    for first, second in ((early, late), (late, early)):
        with first.capture(layers=[1, 2]) as one, second.capture(layers=[2]) as two:
            assert torch.equal(model(**inputs).logits, logits)
            assert not one.steps and not two.steps
        for adapter, signals in ((first, one), (second, two)):
            expected = adapter.prefill(inputs, layers=list(signals.attention))
            assert torch.equal(signals.hidden, expected.hidden)
            assert all(torch.equal(rows, expected.attention[k]) for k, rows in signals.attention.items())
    early.detach()
    assert same_output(late.segment(IMAGES[0], "the cat", return_logits=True), alone[1])


@paired
def test_segment_inside_capture_is_not_the_users_forward(architecture, fusion):
    adapter, model, processor = trio(architecture, fusion)
    inputs = ready_inputs(processor)
    outside = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    with adapter.capture(layers=[0, 3]) as signals:
        assert same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), outside)
        assert signals.hidden is None
        model(**inputs)
        assert same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), outside)
    assert not signals.steps and torch.equal(signals.hidden, adapter.prefill(inputs).hidden)
    with pytest.raises(LensError, match="No forward"), adapter.capture():
        adapter.segment(IMAGES[0], "the cat")
    assert not hooks_in(model)


def test_segment_between_prefill_and_generate_leaves_the_base_in_step():
    adapter, model, processor = trio("qwen2_vl")  # it remembers rope_deltas between calls
    inputs = ready_inputs(processor)
    with torch.no_grad():
        said = []
        for disturb in (lambda: None, lambda: adapter.segment(IMAGES[2], "the cat")):
            first = model(**inputs, use_cache=True)
            disturb()
            step = model(input_ids=first.logits[:, -1:].argmax(-1), past_key_values=first.past_key_values)
            said.append(step.logits)
    assert torch.equal(*said)


# -- attaching


def test_attach_and_detach():
    adapter, model, processor = tiny_trio()
    adapter.detach()
    adapter.detach()
    assert not adapter.is_attached
    with adapter.attach(model, processor) as same:
        assert same is adapter and adapter.is_attached and adapter.base.processor is processor
        inside = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    assert not adapter.is_attached
    with pytest.raises(RuntimeError, match="boom"), adapter.attach(model, processor):
        raise RuntimeError("boom")
    assert not adapter.is_attached
    adapter.attach(model, processor)
    assert same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), inside)


def test_attach_without_a_processor_is_enough_to_capture():
    adapter, model, processor = tiny_trio()
    adapter.attach(model)
    assert adapter.base.processor is None
    inputs = ready_inputs(processor)
    assert torch.equal(adapter.prefill(inputs).hidden, adapter.attach(model, processor).prefill(inputs).hidden)


def test_attach_to_another_base_lets_go_of_the_first():
    adapter, first, processor = tiny_trio()
    second, _ = tiny_pair("llava", seed=5)
    before = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    watch = weakref.ref(first)
    adapter.attach(second, processor)
    assert not same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), before)
    del first
    gc.collect()
    assert watch() is None


def test_pipeline():
    adapter, model, processor = tiny_trio()
    expected = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    adapter.detach()
    chat = pipeline("image-text-to-text", model=model, processor=processor)
    message = [{"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "Hi"}]}]
    say = {"text": message, "max_new_tokens": 3, "do_sample": False, "return_full_text": False}
    answer = chat(**say)
    adapter.attach(chat)
    assert adapter.base.processor is processor
    assert same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), expected)
    with adapter.capture() as signals:
        assert chat(**say) == answer
    assert signals.hidden is not None and len(signals.steps) == 2 and not hooks_in(model)
    assert LensAdapter.from_model(chat, load_sam=False, fusion="lite", sam=tiny_sam()).base.processor is processor


@pytest.mark.parametrize("fusion", FUSIONS)
def test_peft_model(fusion):
    adapter, model, processor = tiny_trio("qwen2_5_vl", fusion)
    inputs = ready_inputs(processor)
    plain = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    adapter.detach()
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, lora).eval()
    logits = tuned(**inputs).logits
    adapter.attach(tuned, processor)
    assert not same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), plain)
    with adapter.capture() as signals:
        assert torch.equal(tuned(**inputs).logits, logits)
    assert torch.equal(signals.hidden, adapter.prefill(inputs).hidden)
    with adapter.capture() as signals:
        tuned.generate(**inputs, **GREEDY)
    assert len(signals.steps) == GREEDY["max_new_tokens"] - 1
    with tuned.disable_adapter():
        assert same_output(adapter.segment(IMAGES[0], "the cat", return_logits=True), plain)
    assert not hooks_in(model)


# -- what belongs to the adapter


@paired
def test_nothing_of_the_base_belongs_to_the_adapter(architecture, fusion):
    adapter, model, processor = tiny_trio(architecture, fusion)
    theirs = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    ours = [*adapter.parameters(), *adapter.buffers(), *adapter.state_dict().values()]
    assert not theirs & {tensor.data_ptr() for tensor in ours}
    assert not {id(module) for module in model.modules()} & {id(module) for module in adapter.modules()}
    names = set(adapter.state_dict())
    adapter.detach()
    assert names == set(adapter.state_dict())
    assert {name.split(".")[0] for name in names} == {"head", "decoder"}
    adapter.attach(model, processor).to(torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_copies_and_pickles_are_detached(fusion):
    adapter, model, processor = tiny_trio(fusion=fusion)
    expected = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert not twin.is_attached and adapter.is_attached
        twin.attach(model, processor)
        assert same_output(twin.segment(IMAGES[0], "the cat", return_logits=True), expected)
    assert len(pickle.dumps(adapter)) < len(pickle.dumps(adapter.state_dict())) + 2**19


def test_mirror_starts_as_a_copy_of_the_bases_layers():
    adapter, model, processor = tiny_trio(fusion="mirror", fusion_layers=2, tap_layer=1)
    base = model.model.language_model.layers
    for mine, theirs in zip(adapter.head.fusion.layers.layers, base[1:3], strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], tensor)
    learn(adapter, processor)
    name = "self_attn.q_proj.weight"
    assert not torch.equal(adapter.head.fusion.layers.layers[0].state_dict()[name], base[1].state_dict()[name])
    assert adapter.config.num_hidden_layers == NUM_LAYERS


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_image_encoder_arrives_when_needed_and_is_not_saved(tmp_path, context):
    sam = tiny_sam(include_image_encoder=False, weights=str(tmp_path / "sam"))
    tiny_sam_model(sam).save_pretrained(tmp_path / "sam")
    model, processor = tiny_pair("llava")
    adapter = LensAdapter.from_model(model, processor, fusion="lite", fusion_width=32, fusion_layers=1, sam=sam)
    assert adapter.decoder.image_encoder is None
    with context():
        out = adapter.segment(IMAGES[0], "the cat", return_logits=True)
    assert not any(parameter.requires_grad for parameter in adapter.decoder.image_encoder.parameters())
    adapter.save_pretrained(tmp_path / "lens")
    assert not [name for name in load_file(tmp_path / "lens" / "model.safetensors") if "image_encoder" in name]
    loaded = LensAdapter.from_pretrained(tmp_path / "lens").attach(model, processor)
    assert loaded.decoder.image_encoder is None
    assert_close(loaded.segment(IMAGES[0], "the cat", return_logits=True), out)
    # And it is the published one that was read.
    whole = LensAdapter.from_model(
        model, processor, fusion="lite", sam={**sam, "include_image_encoder": True}
    ).decoder.image_encoder.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in loaded.decoder.image_encoder.state_dict().items())
    learn(adapter, processor)


def test_image_encoder_that_cannot_be_found_stops_before_the_base_runs(tmp_path):
    adapter, model, _ = tiny_trio(sam=tiny_sam(include_image_encoder=False, weights=str(tmp_path / "nowhere")))
    with pytest.raises((CheckpointMismatchError, OSError), match="nowhere"):
        adapter.segment(IMAGES[0], "the cat")
    assert adapter.decoder.image_encoder is None and not hooks_in(model)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_head_that_was_never_trained_says_so_once(fusion, tmp_path, caplog):
    model, processor = tiny_pair("llava")
    fields = {"fusion": fusion, "fusion_width": 32, "fusion_layers": 1, "sam": tiny_sam()}

    def said(adapter: LensAdapter) -> int:
        caplog.clear()
        adapter.segment(IMAGES[0], ["the cat", "a dog"])
        return sum("was never trained" in record.getMessage() for record in caplog.records)

    fresh, moved, learned = (LensAdapter.from_model(model, processor, load_sam=False, **fields) for _ in range(3))
    assert [said(fresh), said(fresh)] == [1, 0] and said(moved.bfloat16()) == 1
    learn(learned, processor)
    learned.save_pretrained(tmp_path)
    loaded = LensAdapter.from_pretrained(tmp_path).attach(model, processor)
    loaded.decoder.image_encoder = learned.decoder.image_encoder
    assert said(learned) == said(loaded) == 0


def test_prefill_takes_inputs_by_name_too():
    adapter, _, processor = trio()
    inputs = ready_inputs(processor)
    whole, unpacked = adapter.prefill(inputs, layers=[0]), adapter.prefill(**inputs, layers=[0])
    assert torch.equal(whole.hidden, unpacked.hidden) and [*unpacked.attention] == [0]
    for given, named in ((None, {}), (inputs, inputs)):
        with pytest.raises(LensError, match=r"prefill\(inputs\) or prefill\(\*\*inputs\)"):
            adapter.prefill(given, **named)
