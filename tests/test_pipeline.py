"""transformers' pipelines: ours over a base and a head, and the base's own, which an adapter leaves alone."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline

from lens_adapter.errors import InputError
from lens_adapter.pipeline import TASK, LensSegmentationPipeline
from tests.tiny.adapters import GREEDY, hooks_in, tiny_adapter, tiny_trio, weights_of
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

IMAGES = [noise_image(50, 70), noise_image(60, 44, seed=1), noise_image(40, 40, seed=2)]
PROMPTS = ["the cat", "a dog on the left"]


@pytest.fixture(scope="module")
def pipe() -> LensSegmentationPipeline:
    adapter, model, processor = tiny_trio()
    return pipeline(TASK, model=model, processor=processor, adapter=adapter, device=-1)


def masks(found):
    return {entry["label"]: np.asarray(entry["mask"]) for entry in found}


def expect(found, output, prompts):
    """What came out of the pipeline is `output`, what `segment` says of the same prompts."""
    assert [entry["label"] for entry in found] == prompts
    assert [entry["score"] for entry in found] == pytest.approx(output.scores.tolist(), abs=1e-5)
    for mask, truth in zip(masks(found).values(), output.masks.numpy(), strict=True):
        assert mask.shape == truth.shape and set(np.unique(mask)) <= {0, 255}
        assert ((mask == 255) != truth).mean() < 1e-3


def test_an_image_comes_out_in_the_shape_of_image_segmentation(pipe):
    found = pipe(IMAGES[0], prompts=PROMPTS, threshold=0)
    assert all(set(entry) == {"label", "score", "mask"} for entry in found)
    assert found[0]["mask"].mode == "L" and found[0]["mask"].size == (70, 50)
    output = pipe.adapter.segment(IMAGES[0], PROMPTS)
    assert 0 < output.masks.float().mean() < 1
    expect(found, output, PROMPTS)


def test_lists_batches_generators_and_datasets_agree(pipe):
    outputs = pipe.adapter.segment(IMAGES, [PROMPTS] * 3)

    class Pictures(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return {"image": IMAGES[index], "prompts": PROMPTS, "more": "columns"}

    asked = {"prompts": PROMPTS, "threshold": 0}
    ways = [
        pipe(IMAGES, **asked),
        pipe(IMAGES, batch_size=2, **asked),
        list(pipe((image for image in IMAGES), batch_size=3, **asked)),
        list(pipe(Pictures(), batch_size=2, threshold=0)),
        pipe([np.asarray(image) for image in IMAGES], batch_size=2, **asked),
        pipe([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in IMAGES], batch_size=2, **asked),
    ]
    for found in ways:
        assert len(found) == 3
        for entries, output in zip(found, outputs, strict=True):
            expect(entries, output, PROMPTS)


def test_images_of_a_batch_may_have_prompts_of_their_own(pipe):
    asked = [{"image": IMAGES[0], "prompts": "the cat"}, {"image": IMAGES[1]}]
    first, second = pipe(asked, prompts=PROMPTS, batch_size=2, threshold=0)
    expect(first, pipe.adapter.segment(IMAGES[0], ["the cat"]), ["the cat"])
    expect(second, pipe.adapter.segment(IMAGES[1], PROMPTS), PROMPTS)


def test_thresholds(pipe):
    every = pipe(IMAGES[0], prompts=PROMPTS, threshold=0)
    low, high = sorted(entry["score"] for entry in every)
    assert 0 < low < high
    between = pipe(IMAGES[0], prompts=PROMPTS, threshold=(low + high) / 2)
    assert [entry["score"] for entry in between] == [high]
    assert pipe(IMAGES[0], prompts=PROMPTS, threshold=1.1) == []
    by_default = [entry for entry in every if entry["score"] >= pipe.adapter.config.score_threshold]
    assert len(pipe(IMAGES[0], prompts=PROMPTS)) == len(by_default)
    areas = [
        (masks(pipe(IMAGES[0], "the cat", threshold=0, mask_threshold=t))["the cat"] > 0).sum() for t in (0.1, 0.9)
    ]
    assert areas[0] > areas[1]


def test_the_threshold_of_a_call_alone_decides_and_masks_come_with_low_scores(pipe):
    out, config = pipe.adapter.segment(IMAGES[0], PROMPTS), pipe.adapter.config
    config.score_threshold = out.scores.double().mean().item()  # of a head that was calibrated: it refuses one
    try:
        assert not pipe.adapter.segment(IMAGES[0], PROMPTS).masks.flatten(1).any(1).all()
        expect(pipe(IMAGES[0], prompts=PROMPTS, threshold=0), out, PROMPTS)
        for found in pipe([IMAGES[0]] * 2, prompts=PROMPTS, threshold=0, batch_size=2):
            expect(found, out, PROMPTS)
        (kept,) = pipe(IMAGES[0], prompts=PROMPTS)
        assert kept["score"] == pytest.approx(out.scores.max().item(), abs=1e-5)
    finally:
        config.score_threshold = 0.0


def test_instances_are_entries_of_their_own(pipe):
    found = pipe(IMAGES[0], prompts=PROMPTS, threshold=0, instances=True)
    output = pipe.adapter.segment(IMAGES[0], PROMPTS, instances=True)
    counts = [len(instances) for instances in output.instances]
    assert [entry["label"] for entry in found] == [p for p, k in zip(PROMPTS, counts, strict=True) for _ in range(k)]
    for entry, mask in zip(found, torch.cat([one.masks for one in output.instances]).numpy(), strict=True):
        assert ((np.asarray(entry["mask"]) == 255) != mask).mean() < 1e-2
    assert pipe(IMAGES[0], prompts=PROMPTS, threshold=1.0, instances=True) == []


def test_parameters_given_when_it_is_made_are_those_of_every_call(pipe):
    model, processor = pipe.model, pipe.processor
    made = pipeline(
        TASK, model=model, processor=processor, adapter=pipe.adapter, prompts=PROMPTS, threshold=0, device=-1
    )
    expect(made(IMAGES[0]), pipe.adapter.segment(IMAGES[0], PROMPTS), PROMPTS)
    assert len(made(IMAGES[0], prompts="the cat")) == 1


def test_folders_in_and_head_out(pipe, tmp_path):
    pipe.model.save_pretrained(tmp_path / "base")
    pipe.processor.save_pretrained(tmp_path / "base")
    content = pipe.model.config.to_json_string()
    pipe.save_pretrained(tmp_path / "head")
    assert pipe.model.config.to_json_string() == content
    IMAGES[0].save(tmp_path / "picture.png")
    loaded = pipeline(TASK, model=str(tmp_path / "base"), adapter=str(tmp_path / "head"), device=-1)
    found = loaded(str(tmp_path / "picture.png"), prompts=PROMPTS, threshold=0)
    expect(found, pipe.adapter.segment(IMAGES[0], PROMPTS), PROMPTS)


def test_urls_are_fetched_and_hold_pictures_of_the_usual_formats(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    IMAGES[0].save(tmp_path / "a.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "script.eps")
    (tmp_path / "script.eps").rename(tmp_path / "script.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        expect(pipe(f"{url}/a.png", PROMPTS, threshold=0), pipe.adapter.segment(IMAGES[0], PROMPTS), PROMPTS)
        with pytest.raises(InputError, match="it is none of JPEG, MPO, PNG"):
            pipe(f"{url}/script.png", PROMPTS)
        with pytest.raises(InputError, match="cannot be fetched"):
            pipe(f"{url}/nowhere.png", PROMPTS)
        server.shutdown()


@pytest.mark.parametrize(
    ("inputs", "asked"),
    [(IMAGES[0], {}), (IMAGES[0], {"prompts": 3}), ({"prompts": "the cat"}, {}), (IMAGES[0], {"prompts": []})],
)
def test_what_cannot_be_asked_is_refused(pipe, inputs, asked):
    with pytest.raises(InputError, match=r"(?i)prompts"):
        pipe(inputs, **asked)


def test_an_adapter_is_needed():
    model, processor = tiny_pair("llava")
    with pytest.raises(InputError, match="adapter must be a head's id, its folder, or a LensAdapter; got None"):
        pipeline(TASK, model=model, processor=processor, device=-1)


def test_importing_the_package_stays_light():
    check = "import lens_adapter, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_a_chat_pipeline_talks_on_bit_for_bit(architecture):
    model, processor = tiny_pair(architecture)
    chat = pipeline("image-text-to-text", model=model, processor=processor, device=-1)
    parts = [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "Hi"}]
    messages, weights = [{"role": "user", "content": parts}], weights_of(model)

    def speak():
        torch.manual_seed(0)
        sampled = chat(text=messages, generate_kwargs={"max_new_tokens": 6, "do_sample": True})
        return chat(text=messages, generate_kwargs=GREEDY), sampled

    before = speak()
    assert before[0] != before[1]
    adapter = tiny_adapter(model, processor)
    adapter.detach()
    assert adapter.attach(chat).base.processor is processor
    assert speak() == before
    with adapter.capture(query="all") as signals:
        assert speak() == before
    assert signals.steps
    adapter.segment(IMAGES[0], PROMPTS)
    assert speak() == before
    adapter.detach()
    assert speak() == before and not hooks_in(model) and weights_of(model) == weights
