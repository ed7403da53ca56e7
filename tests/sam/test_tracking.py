"""Masks carried through frames are those of the family's own video model and processor, driven by hand."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_adapter import LensAdapter, LensVideoOutput
from lens_adapter.errors import CheckpointMismatchError, LensConfigError, LensError
from lens_adapter.sam.families import FAMILIES
from tests.tiny.adapters import hooks_in, learn, marks_on, ready_inputs, tiny_trio, weights_of
from tests.tiny.families import (
    INSTALLED,
    save_family,
    save_video_model,
    tiny_video_config,
    video_parts,
    video_processor_of,
)
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image

VIDEO = [name for name in INSTALLED if FAMILIES[name].video]
STILL = [name for name in INSTALLED if not FAMILIES[name].video]
FRAMES = [noise_image(50, 90, seed=seed) for seed in range(5)]
PROMPTS = ["the cat", "a dog on the left", "a cup"]
SEEN = 6.0  # added to the word on whether a thing is there


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{family: the folder of its tiny video model}; read only."""
    return {name: save_video_model(name, tmp_path_factory.mktemp(name)) for name in VIDEO}


def adapter_for(folder: Path) -> LensAdapter:
    """On SAM's weights in a folder, with a mask decoder that was tuned, and mostly sees what it is asked for."""
    torch.manual_seed(0)
    fields = {"fusion_width": 32, "fusion_layers": 1, "dense_prompt": False, "score_threshold": 0.0}
    adapter = LensAdapter.from_model(*tiny_pair("llava"), fusion="lite", sam=str(folder), **fields).eval()
    with torch.no_grad():
        for parameter in adapter.decoder.mask_decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
        adapter.decoder.get_parameter("mask_decoder.pred_obj_score_head.proj_out.bias").add_(SEEN)
        for parameter in adapter.head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return adapter


def by_hand(adapter: LensAdapter, folder: Path, start: int, masks: Tensor) -> dict[int, Tensor]:
    """{frame: logits (N, h, w)} of the family's own model and processor, with nothing of ours but the mask decoder."""
    family = adapter.config.sam["family"]
    config = tiny_video_config(family)  # what transformers 4 reads of EdgeTAM's folder asks the Hub for its default
    model = getattr(transformers, FAMILIES[family].video[0]).from_pretrained(folder, config=config).eval()
    model.mask_decoder.load_state_dict(adapter.decoder.mask_decoder.state_dict())
    processor = video_processor_of(family)
    session = processor.init_video_session(video=FRAMES)
    processor.add_inputs_to_inference_session(session, start, [*range(len(masks))], input_masks=list(masks))
    return {
        out.frame_idx: out.pred_masks[:, 0].clone()
        for reverse in (False, True)
        for out in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse)
    }


@pytest.mark.parametrize("family", VIDEO)
def test_tracked_logits_are_those_of_the_familys_own(family, videos):
    adapter, start = adapter_for(videos[family]), 2
    adapter.decoder.load_image_encoder()
    tracker = adapter.decoder.load_tracker()
    rows, columns = torch.meshgrid(torch.arange(50), torch.arange(90), indexing="ij")
    masks = torch.stack([(rows - 20) ** 2 + (columns - x) ** 2 < 150 for x in (20, 60)])
    switch = "dynamic_multimask_via_stability"  # off for heads; a video model tracks as it was taught
    assert getattr(tracker.model.config.mask_decoder_config, switch)
    assert not adapter.config.sam["config"]["mask_decoder_config"][switch]
    session = tracker.open(adapter.decoder, FRAMES)
    list(tracker.carry(session, 4, masks[:1]))  # is forgotten
    carried = list(tracker.carry(session, start, masks))
    assert [frame for frame, *_ in carried] == [3, 4, 1, 0]
    theirs = by_hand(adapter, videos[family], start, masks)
    for frame, logits, presence in carried:
        assert logits.isfinite().all() and presence.shape == (2,)
        torch.testing.assert_close(logits, theirs[frame], atol=1e-5, rtol=0)
        assert logits.std() > 0.01 and not torch.equal(logits[0], logits[1])  # they say something, of each its own


@pytest.mark.parametrize("family", VIDEO)
def test_a_video_is_tracked_from_the_best_frame_of_every_prompt(family, videos):
    adapter = adapter_for(videos[family])
    processor = video_processor_of(family)
    plain = adapter.segment_video(FRAMES, PROMPTS)
    video = adapter.segment_video(FRAMES, PROMPTS, track=True)
    assert isinstance(video, LensVideoOutput) and video.tracked and not plain.tracked
    assert video.best == plain.best == plain.scores.argmax(0).tolist()
    level = torch.logit(torch.tensor(adapter.config.mask_threshold))
    for best in set(video.best):
        rows = [row for row, frame in enumerate(video.best) if frame == best]
        assert torch.equal(video.masks[best, rows], plain.masks[best, rows])  # as it was drawn
        assert torch.equal(video.scores[best, rows], plain.scores[best, rows])
        theirs = by_hand(adapter, videos[family], best, plain.masks[best, rows])
        for frame in {*range(5)} - {best}:
            (logits,) = processor.post_process_masks([theirs[frame][None]], [[50, 90]], binarize=False)
            sure = (logits[0] - level).abs() > 1e-3
            assert torch.equal(video.masks[frame, rows][sure], (logits[0] > level)[sure])
            assert torch.equal(video.found[frame, rows], video.scores[frame, rows] > 0.5)
    others = [frame for frame in range(5) if frame not in video.best]
    assert not torch.equal(video.masks[others], plain.masks[others])
    for mine, read in zip(video, plain, strict=True):
        assert torch.equal(mine.heatmaps, read.heatmaps)


def test_the_tuned_mask_decoder_is_used_as_it_is_at_the_time(videos):
    adapter = adapter_for(videos["sam2"])
    first = adapter.segment_video(FRAMES, PROMPTS, track=True)
    with torch.no_grad():
        adapter.decoder.get_parameter("mask_decoder.pred_obj_score_head.proj_out.bias").sub_(20 * SEEN)
    second = adapter.segment_video(FRAMES, PROMPTS, track=True)
    away = torch.tensor([[frame != best for best in second.best] for frame in range(5)])
    assert first.found.all()
    assert not second.found[away].any() and not second.masks[away].any()  # "not there", by the head's own decoder
    assert all(len(points) == 0 for points in second[(second.best[0] + 1) % 5].keypoints)


def test_what_is_found_in_no_frame_is_not_tracked(videos):
    adapter = adapter_for(videos["sam2"])
    video = adapter.segment_video(FRAMES, PROMPTS, track=True, score_threshold=0.999)
    assert video.best == [None] * 3 and not video.masks.any() and not video.found.any()


def test_numbers_that_are_none_become_no_mask(videos):
    adapter = adapter_for(videos["sam2"])
    adapter.segment_video(FRAMES, PROMPTS, track=True)
    with torch.no_grad():
        adapter._tracker.model.model.memory_attention.layer_norm.weight.fill_(torch.inf)
    with pytest.raises(LensError, match=r"in float32, made numbers that are infinite or none .* of frame "):
        adapter.segment_video(FRAMES, PROMPTS, track=True)


@pytest.mark.skipif("sam3_tracker" not in VIDEO, reason="came with transformers 5")
def test_sam_3s_weights_may_be_those_of_the_whole_that_is_published(videos, tmp_path):
    """Detector and tracker in one file, whose encoder is the detector's."""
    names = {"vision_encoder.backbone": "detector_model.vision_encoder.backbone", "vision_encoder.neck": "tracker_neck"}
    state = {}
    for name, tensor in load_file(videos["sam3_tracker"] / "model.safetensors").items():
        part = next((part for part in names if name.startswith(part)), "")
        state[names.get(part, "tracker_model.") + name.removeprefix(part)] = tensor
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((videos["sam3_tracker"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "tracker_config": config}))
    whole, part = (
        adapter_for(folder).segment_video(FRAMES, PROMPTS, track=True) for folder in (tmp_path, videos["sam3_tracker"])
    )
    assert torch.equal(whole.masks, part.masks)
    # Tensors lie elsewhere in the file, and kernels may round by that.
    torch.testing.assert_close(whole.scores, part.scores, atol=1e-5, rtol=0)


def test_nothing_is_left_on_base_or_adapter(videos):
    adapter = adapter_for(videos["sam2"])
    model, processor = adapter.base.model, adapter.base.processor
    inputs = ready_inputs(processor)
    adapter.segment(FRAMES[0], PROMPTS)  # what the first use sets up is there now
    with torch.no_grad():
        before = model(**inputs).logits
    names, marks, weights = list(adapter.state_dict()), marks_on(model), weights_of(model)
    adapter.segment_video(FRAMES, PROMPTS, track=True)
    assert hooks_in(model) == [] and marks_on(model) == marks and weights_of(model) == weights
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)
    assert list(adapter.state_dict()) == names  # the video model is no part of the adapter
    assert copy.copy(adapter)._tracker is None
    learn(adapter, processor)  # nor have its weights become inference tensors


@pytest.mark.parametrize("family", [None, *STILL])
def test_families_without_a_video_model_refuse_by_name(family, tmp_path, monkeypatch):
    adapter, _, _ = tiny_trio(**({} if family is None else {"sam": str(save_family(family, tmp_path))}))
    monkeypatch.setattr(adapter.base, "read", None)  # refused before the base is read
    title = FAMILIES[family].title if family else "segment-anything"
    with pytest.raises(LensConfigError, match=f"{title} has no video model.*track=False.*'sam2.1-small'"):
        adapter.segment_video(FRAMES, PROMPTS, track=True)


def test_weights_without_a_memory_are_refused_and_another_folder_may_have_one(videos, tmp_path):
    adapter = adapter_for(save_family("sam2", tmp_path, config=video_parts("sam2")))
    with pytest.raises(CheckpointMismatchError, match=r"tensors of its memory are missing.*Sam2VideoModel.*track="):
        adapter.segment_video(FRAMES, PROMPTS, track=True)
    video = adapter.segment_video(FRAMES, PROMPTS, track=str(videos["sam2"]))
    assert torch.equal(video.masks, adapter_for(videos["sam2"]).segment_video(FRAMES, PROMPTS, track=True).masks)
    with pytest.raises(CheckpointMismatchError, match="holds the weights of SAM;"):
        adapter.segment_video(FRAMES, PROMPTS, track=str(save_family("sam", tmp_path / "sam")))


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("num_maskmem", 10**9, CheckpointMismatchError),
        ("memory_attention_num_layers", 10**9, LensConfigError),
        ("num_maskmem", 5, CheckpointMismatchError),  # of another shape
        ("memory_attention_num_layers", "many", CheckpointMismatchError),
        ("memory_fuser_hidden_act", "os.system", CheckpointMismatchError),
    ],
)
def test_an_odd_config_of_a_memory_is_refused(key, value, error, videos, tmp_path):
    adapter = adapter_for(videos["sam2"])
    shutil.copytree(videos["sam2"], tmp_path / "odd")
    config = tmp_path / "odd" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(error):
        adapter.segment_video(FRAMES, PROMPTS, track=str(tmp_path / "odd"))
