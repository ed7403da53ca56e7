"""Videos: what is taken as frames, what comes of them, and animations. Tracking is in tests/sam/test_tracking.py."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lens_adapter import LensVideoOutput
from lens_adapter.builtin.world import moving_scene, sample_scene
from lens_adapter.errors import InputError, LensError, NotAttachedError
from lens_adapter.video import read_frames
from tests.tiny.adapters import hooks_in, marks_on, ready_inputs, tiny_trio, weights_of
from tests.tiny.sam import noise_image

FRAMES = [noise_image(30, 40, seed=seed) for seed in range(4)]
PROMPTS = ["the cat", "a dog on the left"]


@pytest.fixture(scope="module")
def trio():
    return tiny_trio(score_threshold=0.0)


@pytest.fixture(scope="module")
def video(trio) -> LensVideoOutput:
    return trio[0].segment_video(FRAMES, PROMPTS)


def animated(pictures: list[Image.Image]) -> Image.Image:
    written = BytesIO()
    pictures[0].save(written, "PNG", save_all=True, append_images=pictures[1:])
    return Image.open(written)


def test_a_frame_is_what_segment_makes_of_it(trio, video):
    assert len(video) == 4 and video.masks.shape == (4, 2, 30, 40) and video.masks.dtype == torch.bool
    assert video.scores.shape == video.found.shape == (4, 2) and not video.tracked
    for frame, out in zip(FRAMES, video, strict=True):
        alone = trio[0].segment(frame, PROMPTS)
        assert torch.equal(out.masks, alone.masks) and torch.equal(out.scores, alone.scores)
        assert torch.equal(out.heatmaps, alone.heatmaps)  # heat per frame
    assert video[2] is video.frames[2] and video.prompts == PROMPTS and video.image_size == (30, 40)


def test_batches_change_nothing(trio, video):
    batched = trio[0].segment_video(FRAMES, PROMPTS, batch_size=5)
    torch.testing.assert_close(batched.scores, video.scores, atol=1e-4, rtol=0)
    assert (batched.masks != video.masks).float().mean() < 1e-3


def test_frames_may_be_arrays_tensors_and_copies_of_an_animations(trio, video):
    array = np.stack([np.asarray(frame) for frame in FRAMES])
    kinds = [array, torch.from_numpy(array).permute(0, 3, 1, 2), array.astype(np.float32) / 255, tuple(FRAMES)]
    kinds.append([frame.copy() for frame in ImageSequence.Iterator(animated(FRAMES))])
    for kind in kinds:
        assert [np.asarray(one).tolist() for one in read_frames(kind)] == array.tolist()
    assert torch.equal(trio[0].segment_video(array, PROMPTS[0]).masks, trio[0].segment_video(FRAMES, PROMPTS[:1]).masks)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame"),
        ("video.mp4", "a decoder of videos"),
        (FRAMES[0], "must be a list of pictures"),
        (np.zeros((30, 40, 3), np.uint8), r"got shape \(30, 40, 3\)"),
        (torch.zeros(2, 30, 40, 3, dtype=torch.uint8), r"torch tensor \(3, H, W\)"),
        ([FRAMES[0], FRAMES[1].resize((41, 30))], r"of one size; frame 0 has .*\(40, 30\), frame 1 \(41, 30\)"),
        (list(ImageSequence.Iterator(animated(FRAMES))), r"one and the same.*frame\.copy\(\)"),
        ([FRAMES[0], "no such file.png"], "no image file"),
    ],
)
def test_what_is_no_video_is_refused(frames, message, trio):
    with pytest.raises(InputError, match=message):
        trio[0].segment_video(frames, PROMPTS)


def test_prompts_and_thresholds_are_those_of_segment(trio):
    adapter, model, processor = trio
    for wrong in ([], [""], 5, [["a cat"]]):
        with pytest.raises(InputError):
            adapter.segment_video(FRAMES, wrong)
    with pytest.raises(InputError, match="mask_threshold"):
        adapter.segment_video(FRAMES, PROMPTS, mask_threshold=2)
    with pytest.raises(InputError, match="track must be True"):
        adapter.segment_video(FRAMES, PROMPTS, track=5)
    assert not adapter.segment_video(FRAMES, PROMPTS, score_threshold=0.999).found.any()
    adapter.detach()
    with pytest.raises(NotAttachedError):
        adapter.segment_video(FRAMES, PROMPTS)
    adapter.attach(model, processor)


def test_the_best_frame_is_one_that_has_a_mask(video):
    assert video.best == video.scores.argmax(0).tolist()
    frames = list(video)
    best = video.best[0]
    frames[best] = frames[best][:]  # an output of its own
    frames[best].masks = frames[best].masks.clone()
    frames[best].masks[0] = False
    second = video.scores[:, 0].clone()
    second[best] = -1
    assert LensVideoOutput(frames).best == [int(second.argmax()), video.best[1]]
    for out in frames:
        out.found = torch.tensor([False, True])
    assert LensVideoOutput(frames).best[0] is None
    for out in frames:
        out.found = torch.tensor([True, True])


def test_frames_of_several_kinds_are_no_output(video):
    for frames in ([], [video[0], video[1][:1]]):
        with pytest.raises(LensError, match="same prompts and size"):
            LensVideoOutput(frames)
    with pytest.raises(LensError, match="best"):
        LensVideoOutput(list(video), best=[0])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_shows_every_frame(suffix, video, tmp_path):
    path = tmp_path / "new" / f"video{suffix}"
    video.save(path, fps=5, heatmap=True)
    with Image.open(path) as opened:
        assert opened.n_frames == 4 and opened.size == (40, 30)
        opened.seek(1)
        opened.load()
        assert opened.info["duration"] == 200
        shown = np.asarray(opened.convert("RGB"), float)
    away = [np.abs(shown - np.asarray(out.plot(heatmap=True), float)).mean() for out in video]
    assert away[1] < min(away[0], *away[2:]) / 2  # whatever a format loses
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_written_is_refused(video, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.gif, \.webp, \.png"):
        video.save(tmp_path / "video.mp4")
    for fps in (0, float("nan"), 1000, "10"):
        with pytest.raises(InputError, match="fps must be a number"):
            video.save(tmp_path / "video.gif", fps=fps)
    assert not any(tmp_path.iterdir())


def test_it_says_itself_and_its_run_lengths(video):
    assert repr(video).startswith("LensVideoOutput(4 frames of 40 x 30 pixels: 'the cat' in 4 (best: ")
    assert video.to_coco_rle() == [out.to_coco_rle() for out in video]


def test_the_base_answers_as_before(trio):
    adapter, model, processor = trio
    inputs = ready_inputs(processor)
    with torch.no_grad():
        before = model(**inputs).logits
    marks, weights = marks_on(model), weights_of(model)
    adapter.segment_video(FRAMES, PROMPTS)
    assert hooks_in(model) == [] and marks_on(model) == marks and weights_of(model) == weights
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def test_a_moving_scene_begins_as_the_scene_and_its_things_stay_in_the_picture():
    first, *others = moving_scene(3, frames=40, step=0.05)
    assert first == sample_scene(3, "test", count=(2, 4)) and others[0] == moving_scene(3, frames=2, step=0.05)[1]
    for before, after in zip([first, *others], others, strict=False):
        for old, new in zip(before.objects, after.objects, strict=True):
            assert (old.name, old.color, old.side, old.angle) == (new.name, new.color, new.side, new.angle)
            assert 0 < np.hypot(new.x - old.x, new.y - old.y) < 0.051
    for scene in others[::13]:
        masks = scene.masks(96)
        assert not masks[:, [0, -1]].any() and not masks[:, :, [0, -1]].any()  # nothing leaves it
    still = [np.asarray(scene.draw(48), int)[:4, :4] for scene in (first, others[0])]
    assert np.abs(still[0] - still[1]).max() < 40  # the same background
