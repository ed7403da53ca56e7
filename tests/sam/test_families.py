"""Transformers' SAMs behind our interface: what they decode by themselves, in their own frame, and nothing else."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from lens_adapter import LensConfig
from lens_adapter.errors import CheckpointMismatchError, LensConfigError, LensError
from lens_adapter.sam.build import build_decoder
from lens_adapter.sam.clicks import clicked_mask, masks_of_clicks
from lens_adapter.sam.families import FAMILIES, installed_families, whole_config
from lens_adapter.sam.transformers_family import FamilyDecoder
from tests.sam.test_clicks import prompts
from tests.tiny.families import INSTALLED, WIDTH, own_processor, tiny_config, tiny_family_model
from tests.tiny.sam import noise_image, tiny_decoder

SIZES = [(40, 100), (90, 33), (64, 64)]  # wide, tall, square
IMAGES = [noise_image(*size, seed=k) for k, size in enumerate(SIZES)]
SQUASHED = [name for name in INSTALLED if FAMILIES[name].squashed]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
# Of each image, of each prompt, its clicks in pixels, and what each means: as many as there are.
CLICKS = [
    [[(10, 12), (80, 30)], [(50, 20)]],
    [[(5, 80)], [(20, 60), (30, 88)]],
    [[(60, 3), (1, 62)], [(32, 32)]],
]
LABELS = [[[1, 0], [1]], [[1], [0, 1]], [[1, 1], [1]]]
BOXES = [[[5, 5, 70, 30], [0, 0, 99, 39]], [[3, 40, 30, 80], [0, 10, 12, 20]], [[10, 10, 50, 50], [2, 30, 60, 40]]]


@pytest.fixture(params=INSTALLED)
def family(request) -> str:
    return request.param


@cache
def loaded(folder: Path) -> FamilyDecoder:
    decoder = build_decoder(LensConfig(sam=str(folder)).sam)
    assert isinstance(decoder, FamilyDecoder)
    decoder.load_weights()
    decoder.load_image_encoder()
    return decoder.eval()


def load(folder: Path) -> FamilyDecoder:
    """Our decoder of a folder, image encoder and all."""
    return deepcopy(loaded(folder))


def their_own(family: str, **prompts: list) -> tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
    """The family's own processor and forward: logits (B, P, h, w), quality (B, P), full-size logits, object score."""
    model, processor = tiny_family_model(family), own_processor(family)
    if FAMILIES[family].has_object_score:
        model.mask_decoder.dynamic_multimask_via_stability = False
    padded = not FAMILIES[family].squashed
    inputs = processor(images=IMAGES, return_tensors="pt", **({} if padded else prompts))
    if padded:  # whose processor takes no prompts with different numbers of clicks about one image
        # By its authors' rule: 4.57's processor, which resizes so, reports the original sizes instead.
        square = [ResizeLongestSide.get_preprocess_shape(*size, 64) for size in SIZES]
        inputs["reshaped_input_sizes"] = torch.tensor(square)
        scale = (inputs["reshaped_input_sizes"] / inputs["original_sizes"]).flip(-1).float()
        if "input_points" in prompts:
            clicks = [[[*one, *[(0, 0)] * (2 - len(one))] for one in image] for image in prompts["input_points"]]
            labels = [[[*one, *[-10] * (2 - len(one))] for one in image] for image in prompts["input_labels"]]
            inputs["input_points"] = torch.tensor(clicks) * scale[:, None, None]
            inputs["input_labels"] = torch.tensor(labels)
        if "input_boxes" in prompts:
            inputs["input_boxes"] = torch.tensor(prompts["input_boxes"]) * scale.repeat(1, 2)[:, None]
    sizes = {"original_sizes": inputs["original_sizes"]}
    given = {
        key: inputs[key] for key in ("pixel_values", "input_points", "input_labels", "input_boxes") if key in inputs
    }
    if "reshaped_input_sizes" in inputs:
        sizes["reshaped_input_sizes"] = inputs["reshaped_input_sizes"]
    with torch.no_grad():
        found = model(**given, multimask_output=False)
    images = processor if padded else processor.image_processor
    post, more = images.post_process_masks, {"pad_size": images.pad_size} if padded else {}
    full = post(found.pred_masks, **sizes, binarize=False, **more)
    score = found.object_score_logits[..., 0].sigmoid() if FAMILIES[family].has_object_score else None
    return found.pred_masks[:, :, 0], found.iou_scores[:, :, 0], [one[:, 0] for one in full], score


def ours_of(decoder: FamilyDecoder, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None):
    index = torch.arange(3).repeat_interleave(2)
    sizes = [SIZES[k] for k in index.tolist()]
    with torch.no_grad():
        return decoder(decoder.encode_images(IMAGES), index, decoder.clicks(points, sizes, labels, boxes)), sizes


# -- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["points", "boxes", "both"])
def test_masks_are_the_familys_own(family, kind, folders):
    decoder = load(folders[family])
    scale = torch.tensor([[w, h] for h, w in SIZES]).repeat_interleave(2, 0)  # of each prompt
    prompts, points, labels, boxes = {}, None, None, None
    if kind != "boxes":
        prompts |= {
            "input_points": [[list(map(list, one)) for one in image] for image in CLICKS],
            "input_labels": LABELS,
        }
        flat = [clicks for image in CLICKS for clicks in image]
        points = torch.tensor([[*clicks, *[(0, 0)] * (2 - len(clicks))] for clicks in flat]) / scale[:, None]
        labels = torch.tensor([[*row, *[-1] * (2 - len(row))] for image in LABELS for row in image])
    if kind != "points":
        prompts["input_boxes"] = BOXES
        boxes = torch.tensor(BOXES).flatten(0, 1) / scale.repeat(1, 2)
    logits, quality, full, score = their_own(family, **prompts)
    ours, sizes = ours_of(decoder, points, labels, boxes)
    assert logits.std() > 0.01  # or anything would be equal
    torch.testing.assert_close(ours.logits, logits.flatten(0, 1), **CLOSE)
    torch.testing.assert_close(ours.quality, quality.flatten(0, 1), **CLOSE)
    if score is None:
        assert ours.presence is None and torch.equal(ours.score, ours.quality)
    else:
        torch.testing.assert_close(ours.presence, score.flatten(0, 1), **CLOSE)
        assert torch.equal(ours.score, ours.quality * ours.presence)
    for k, size in enumerate(sizes):
        whole = decoder.upsample(ours.logits[k : k + 1], size)
        torch.testing.assert_close(whole[0], full[k // 2][k % 2], **CLOSE)
        cut = float(ours.logits[k].median())  # a mask with an outline
        mask = decoder.masks(ours.logits[k : k + 1], size, torch.tensor(cut).sigmoid().item())
        assert ((whole > cut) != mask).float().mean() < 1e-3 and 0.05 < mask.float().mean() < 0.95


def test_pixels_are_the_processors(family, folders):
    pixels, sizes = load(folders[family]).preprocess(IMAGES)
    expected = own_processor(family)(images=IMAGES, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected, **CLOSE)
    assert sizes == SIZES


def test_a_mask_prompt_is_the_familys_own(family, folders):
    decoder, model = load(folders[family]), tiny_family_model(family)
    low = torch.randn(2, 32, 32)
    with torch.no_grad():
        expected = model.prompt_encoder(None, None, None, low[:, None])[1]
        assert torch.equal(decoder.mask_prompts(low), expected)
        embeddings, index = decoder.encode_images(IMAGES[:2]), torch.arange(2)
        sparse = decoder.clicks(torch.rand(2, 1, 2), SIZES[:2])
        plain = decoder(embeddings, index, sparse)
        prompted = decoder(embeddings, index, sparse, decoder.mask_prompts(low))
        same = decoder(embeddings, index, sparse, decoder.no_mask.expand(2, -1, -1, -1))
    assert torch.equal(plain.logits, same.logits) and not torch.allclose(plain.logits, prompted.logits)


@pytest.mark.parametrize("family", SQUASHED)
def test_the_single_mask_stays_the_single_mask(family, folders):
    model = tiny_family_model(family)
    assert model.mask_decoder.dynamic_multimask_via_stability  # transformers' default
    decoder = load(folders[family])
    assert not decoder.mask_decoder.dynamic_multimask_via_stability
    with torch.no_grad():
        pixels, _ = decoder.preprocess(IMAGES[:1])
        points = torch.rand(1, 1, 1, 2)
        given = {"pixel_values": pixels, "input_points": points * decoder.sam["image_size"]}
        swapped = model(**given, multimask_output=False).pred_masks[0, 0, 0]  # unstable, as random masks are
        single = decoder(decoder.encode_images(IMAGES[:1]), torch.tensor([0]), decoder.clicks(points[0], SIZES[:1]))
        model.mask_decoder.train()  # where transformers leaves it alone
        alone = model(**given, multimask_output=False).pred_masks[0, 0, 0]
    assert not torch.allclose(swapped, alone, atol=1e-3)
    torch.testing.assert_close(single.logits[0], alone, **CLOSE)


# -- images and prompts -----------------------------------------------------------------------------------------------


def test_prompts_about_several_images_are_as_each_alone(family, folders):
    decoder = load(folders[family])
    index, sparse = torch.tensor([2, 0, 1, 0]), torch.randn(4, 3, WIDTH)
    with torch.no_grad():
        embeddings = decoder.encode_images(IMAGES)
        together = decoder(embeddings, index, sparse)
        for row, image in enumerate(index.tolist()):
            alone = decoder(decoder.encode_images([IMAGES[image]]), torch.tensor([0]), sparse[row : row + 1])
            torch.testing.assert_close(together.logits[row], alone.logits[0], **CLOSE)
            torch.testing.assert_close(together.score[row], alone.score[0], **CLOSE)


def test_places_and_targets_lie_where_the_logits_do(family, folders):
    decoder = load(folders[family])
    for height, width in SIZES:
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[0, height // 4 : height // 2, width // 2 : 3 * width // 4] = True
        covered = decoder.downsample(mask)
        assert covered.shape == (1, 32, 32)
        x, y = (decoder.places(torch.tensor([0.625, 0.375]), (height, width)) * 32).long().tolist()
        assert covered[0, y, x] == 1  # the middle of the box
        back = decoder.masks(20 * (covered - 0.5), (height, width), 0.5)
        assert (back & mask).sum() > 0.8 * (back | mask).sum()
        share = decoder.downsample(torch.ones_like(mask)).mean()
        assert share == 1 if decoder.sam["squashed"] else share < 1.01


def test_a_head_s_points_have_their_own_place_without_a_label(family, folders):
    decoder = load(folders[family])
    points = torch.tensor([[[0.25, 0.5], [0.8, 0.1]]])
    embedded = decoder.clicks(points, [SIZES[0]])[:, :2]
    table = decoder.prompt_encoder.point_embed
    foreground = table[1].weight if isinstance(table, torch.nn.ModuleList) else table.weight[1]
    torch.testing.assert_close(decoder.point_encoding(points, [SIZES[0]]), embedded - foreground, **CLOSE)


def test_clicks_of_readouts_and_persons_work(family, folders):
    decoder = load(folders[family])
    given = prompts([[True, True], [True, False], [False, False]])
    count = len(given.shown)
    index = torch.arange(count) % 2
    with torch.no_grad():
        logits, quality, things = masks_of_clicks(
            decoder, given, decoder.encode_images(IMAGES[:2]), index, [SIZES[k] for k in index.tolist()]
        )
        mask = clicked_mask(
            decoder, decoder.encode_images(IMAGES[:1])[0], torch.rand(3, 2), torch.tensor([True, True, False]), SIZES[0]
        )
    assert logits.shape == (count, 32, 32) and quality.shape == (count,) and len(things) == count
    assert mask.shape == (32, 32) and mask.isfinite().all()


def test_what_is_frozen_stays_as_it_is_while_a_head_learns(family, folders):
    decoder = load(folders[family]).train()
    assert decoder.mask_decoder.training and not decoder.image_encoder.training
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    embeddings = decoder.encode_images(IMAGES)
    optimizer = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], lr=0.1)
    found = decoder(embeddings, torch.arange(3), torch.randn(3, 2, WIDTH))
    (found.logits.square().mean() + found.score.sum()).backward()
    optimizer.step()
    changed = {name for name, tensor in decoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("mask_decoder.") for name in changed)
    assert torch.equal(decoder.encode_images(IMAGES), embeddings)


def test_half_precision_and_other_places(family, folders):
    decoder = load(folders[family])
    points, sizes = torch.rand(1, 3, 2), [SIZES[0]]
    exact = decoder.point_encoding(points, sizes)
    half = load(folders[family]).to(torch.bfloat16)
    assert half.dtype == half.encode_images(IMAGES[:1]).dtype == torch.bfloat16
    labels, boxes = torch.ones(1, 3), torch.tensor([[0.1, 0.2, 0.7, 0.8]])
    asked = decoder.clicks(points, sizes, labels, boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(decoder.point_encoding(points, sizes), exact)
        assert torch.equal(decoder.clicks(points, sizes, labels, boxes), asked)
    clicked = half.clicks(points, sizes, labels, boxes)
    assert clicked.dtype == torch.bfloat16
    torch.testing.assert_close(clicked.float(), asked, atol=0.02, rtol=0.02)  # rounded, at the same places
    found = half(half.encode_images(IMAGES[:1]), torch.tensor([0]), half.clicks(points, sizes))
    assert found.logits.dtype == found.score.dtype == torch.float32 and found.logits.isfinite().all()


# -- loading ----------------------------------------------------------------------------------------------------------


def test_without_its_encoder_nothing_is_encoded_or_saved(family, folders):
    decoder = build_decoder(LensConfig(sam=str(folders[family])).sam)
    assert decoder.encoding is None
    with pytest.raises(LensError, match="load_image_encoder"):
        decoder.encode_images(IMAGES)
    decoder.load_weights()
    decoder.load_image_encoder()
    assert decoder.unsaved_keys == {name for name in decoder.state_dict() if name.startswith("image_encoder.")} != set()
    whole = build_decoder(LensConfig(sam={**decoder.sam, "include_image_encoder": True}).sam)
    assert whole.unsaved_keys == set() and whole.state_dict().keys() == decoder.state_dict().keys()
    whole.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(whole.eval().encode_images(IMAGES), decoder.encode_images(IMAGES), **CLOSE)


def test_another_familys_weights_are_refused_by_name(folders):
    for own in INSTALLED:
        decoder = build_decoder(LensConfig(sam=str(folders[own])).sam)
        for other in INSTALLED:
            if own == other:
                continue
            with pytest.raises(CheckpointMismatchError) as caught:
                decoder.load_weights(folders[other])
            assert FAMILIES[own].title in str(caught.value) and FAMILIES[other].title in str(caught.value)
        with pytest.raises(CheckpointMismatchError, match=r"segment-anything.*decoder is of"):
            decoder.load_weights("builtin")
    with pytest.raises(CheckpointMismatchError, match=r"SAM-HQ.*segment-anything"):
        tiny_decoder().load_weights(folders["sam_hq"])


def test_weights_of_other_dimensions_or_damaged_are_refused(family, folders, tmp_path):
    decoder = build_decoder(LensConfig(sam=str(folders[family])).sam)
    facts = json.loads((folders[family] / "config.json").read_text())
    weights = load_file(folders[family] / "model.safetensors")

    def write(changed: dict[str, Tensor]) -> None:
        (tmp_path / "config.json").write_text(json.dumps(facts))
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})

    name = "mask_decoder.mask_tokens.weight"
    for changed in (
        {**weights, name: torch.zeros(4, 48)},
        {key: value for key, value in weights.items() if key != name},
        {**weights, name: torch.full_like(weights[name], torch.nan)},
    ):
        write(changed)
        with pytest.raises(CheckpointMismatchError, match=r"mask_tokens|mask_decoder"):
            decoder.load_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointMismatchError, match="damaged"):
        decoder.load_weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")  # a pickle
    with pytest.raises(CheckpointMismatchError, match="safetensors"):
        decoder.load_weights(tmp_path)


# -- configs ----------------------------------------------------------------------------------------------------------


def test_a_config_is_whole_and_comes_back(family, folders):
    config = LensConfig(fusion="lite", sam=str(folders[family]))
    sam = config.sam
    assert sam["family"] == family and sam["weights"] == str(folders[family]) and not sam["include_image_encoder"]
    assert sam["out_channels"] == WIDTH and sam["image_size"] // sam["patch_size"] == 8
    with_encoder = LensConfig(sam={"variant": str(folders[family]), "include_image_encoder": True}).sam
    assert with_encoder == {**sam, "include_image_encoder": True}
    again = LensConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.sam == sam and LensConfig(sam=sam).sam == sam
    assert whole_config(family, sam["config"]) == sam["config"]
    FamilyDecoder(again.sam)


def test_what_is_foreign_in_a_config_is_left_out(family):
    config = tiny_config(family)
    clean = whole_config(family, config)
    config |= {"auto_map": {"AutoModel": "evil--code.Model"}, "attn_implementation": "kernels/evil"}
    for part in ("vision_config", "mask_decoder_config"):
        config[part] |= {"_attn_implementation": "kernels/evil", "auto_map": {"AutoModel": "evil"}, "dtype": "float16"}
    if FAMILIES[family].has_object_score:
        config["mask_decoder_config"]["dynamic_multimask_via_stability"] = True
    assert whole_config(family, config) == clean
    assert "evil" not in json.dumps(clean)


def test_parts_of_other_kinds_are_refused():
    config = tiny_config("sam2")
    config["vision_config"]["backbone_config"]["model_type"] = "llama"
    with pytest.raises(LensConfigError, match=r"'llama' is no part of a SAM 2"):
        whole_config("sam2", config)
    for change in ({"architecture": "hf_hub:someone/evil"}, {"model_args": {"head_file": "evil.pth"}}):
        config = tiny_config("edgetam")
        config["vision_config"]["backbone_config"] |= change
        with pytest.raises(LensConfigError, match="name of an architecture of timm"):
            whole_config("edgetam", config)
    config = tiny_config("edgetam")
    config["vision_config"]["backbone_config"]["model_args"]["checkpoint_path"] = "evil.pth"
    assert "evil" not in str(whole_config("edgetam", config))


def test_a_head_says_all_of_its_sam_itself(monkeypatch):
    """What would have to be fetched is refused, before anybody is asked."""
    monkeypatch.setattr("lens_adapter.sam.families.cached_file", lambda *_, **__: pytest.fail("something was fetched"))
    for sam in ("someone/sam2", {"variant": "someone/sam2"}, {"family": "sam2", "weights": "someone/sam2"}):
        with pytest.raises(LensConfigError, match="would have to be fetched"):
            LensConfig.from_dict({"fusion": "lite", "sam": sam})
    for odd in ({"family": ["sam2"]}, {"variant": {}}, {"family": "sam2", "variant": 3}, {1: 2, "family": "sam2"}):
        with pytest.raises(LensConfigError):
            LensConfig.from_dict({"fusion": "lite", "sam": odd})
    endless = tiny_config("sam2")
    endless["mask_decoder_config"]["num_hidden_layers"] = 2**31
    with pytest.raises(LensConfigError, match="must be at most"):
        LensConfig.from_dict({"fusion": "lite", "sam": {"family": "sam2", "config": endless}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "sam9"}, "must be one of"),
        ({"image_sise": 3}, "unknown keys"),
        ({"image_size": 65}, "is 64 by its config; got 65"),
        ({"pixel_std": [0, 1, 1]}, "three numbers"),
        ({"include_image_encoder": "yes"}, "True or False"),
        ({"weights": 3}, "a text or None"),
        ({"config": "none"}, "must be the config"),
        ({"config": {"prompt_encoder_config": {"hidden_size": "wide"}}}, "config"),
        (
            {"config": {"prompt_encoder_config": {"hidden_size": 12, "image_size": 64, "patch_size": 8}}},
            "multiple of 8",
        ),
    ],
)
def test_impossible_values_are_named(changes, words, folders):
    sam = LensConfig(sam=str(folders["sam_hq"])).sam
    with pytest.raises(LensConfigError, match=words):
        LensConfig(sam={**sam, **changes})


def test_unknown_names_say_what_is_known(tmp_path):
    with pytest.raises(LensConfigError, match=r"sam2\.1-small.*owner/name.*'sam9'"):
        LensConfig(sam="sam9")
    with pytest.raises(LensConfigError, match=r"no config\.json"):
        LensConfig(sam=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LensConfigError, match="'llama'; expected one of"):
        LensConfig(sam=str(tmp_path))


def test_a_family_that_transformers_lacks_is_named(monkeypatch):
    monkeypatch.setattr("lens_adapter.sam.families.CONFIG_MAPPING", {"sam": None})
    assert installed_families() == {name: name == "sam" for name in FAMILIES}
    with pytest.raises(LensConfigError, match=r"SAM 2 \('sam2'\) came with transformers 4\.56; installed is"):
        LensConfig(sam="sam2.1-small")


def test_a_video_models_folder_is_read_as_its_image_model(folders, tmp_path):
    facts = json.loads((folders["sam2"] / "config.json").read_text()) | {"model_type": "sam2_video"}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    weights = load_file(folders["sam2"] / "model.safetensors")
    save_file({**weights, "memory_encoder.x": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    one, two = load(tmp_path), load(folders["sam2"])
    assert torch.equal(one.encode_images(IMAGES), two.encode_images(IMAGES))
