"""SamDecoder against segment-anything's own predictor and against transformers' SamModel."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor, sam_model_registry
from torch.testing import assert_close
from transformers import SamConfig, SamModel, SamVisionConfig

from lens_adapter.config import LensConfig
from lens_adapter.errors import CheckpointMismatchError, InputError, LensConfigError, LensError
from lens_adapter.sam import square
from lens_adapter.sam.decoder import PROMPTS_AT_ONCE
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.sam.weights import load_parts, load_sam_weights, rename_from_sam_model
from lens_adapter.signals import Keypoints, SparsePrompts
from tests.tiny.largest import Largest
from tests.tiny.sam import noise_image, segment_anything_of, tiny_decoder, tiny_sam, tiny_sam_model

SIZES = [(64, 64), (40, 100), (101, 33), (37, 53), (7, 5), (200, 1)]  # (H, W); the last is thinner than a pixel of S
close = {"atol": 1e-5, "rtol": 1e-5}


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def clicks(size: tuple[int, int], count: int = 3, seed: int = 0) -> torch.Tensor:
    """Pixel coordinates (count, 2) in an image of `size`, x then y."""
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([size[1], size[0]])


def sparse_prompts(decoder: SamDecoder, points: torch.Tensor, labels: list[int], size: tuple[int, int]) -> torch.Tensor:
    """What SAM's prompt encoder makes of clicks, from `point_encoding`; (1, K + 1, C) with SAM's own padding."""
    encoded = decoder.point_encoding((points / torch.tensor([size[1], size[0]]))[None], [size])[0]
    embeddings, filler = decoder.prompt_encoder.point_embeddings, decoder.prompt_encoder.not_a_point_embed.weight[0]
    rows = [filler if k == -1 else v + embeddings[k].weight[0] for k, v in zip(labels, encoded, strict=True)]
    return torch.stack([*rows, filler])[None]


def vectors_of(decoder: SamDecoder, shown: list[list[bool]]) -> SparsePrompts:
    """What a head might say of two prompts with three points each."""
    generator = torch.Generator().manual_seed(3)
    channels = decoder.sam["out_channels"]
    points = torch.rand(2, 3, 2, generator=generator)
    return SparsePrompts(
        keypoints=Keypoints(points, torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)),
        shown=torch.tensor(shown),
        point_vectors=torch.randn(2, 3, channels, generator=generator),
        text_vector=torch.randn(2, channels, generator=generator),
        heatmap=torch.zeros(2, 4, 4),
        size=torch.tensor([[4, 4], [3, 4]]),
    )


def test_the_decoder_adds_places_and_fillers_to_what_the_head_says():
    decoder, sizes = tiny_decoder(), [(64, 64), (40, 100)]
    prompts = vectors_of(decoder, [[True, True, True], [True, False, False]])
    sparse = decoder.sparse_prompts(prompts, sizes)
    assert sparse.shape == (2, 4, decoder.sam["out_channels"])
    placed = prompts.point_vectors + decoder.point_encoding(prompts.keypoints.points, sizes)
    filler = decoder.prompt_encoder.not_a_point_embed.weight
    assert torch.equal(sparse[:, :3][prompts.shown], placed[prompts.shown])
    assert torch.equal(sparse[1, 1:3], filler.expand(2, -1))
    assert torch.equal(sparse[:, 3], prompts.text_vector)  # of no place


def test_clicks_are_the_prompt_encoders_own():
    decoder, size = tiny_decoder(), (40, 100)
    points = clicks(size)
    expected = sparse_prompts(decoder, points, [1, 1, 1], size)
    fractions = points / torch.tensor([size[1], size[0]])
    torch.testing.assert_close(decoder.clicks(fractions[None], [size]), expected, **close)


# Dimensions


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_variants_are_those_of_segment_anything(variant: str):
    with torch.device("meta"):
        ours = SamDecoder(LensConfig(sam={"variant": variant, "include_image_encoder": True}).sam)
        theirs = sam_model_registry[variant]()
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert [block.window_size for block in ours.image_encoder.blocks] == [
        block.window_size for block in theirs.image_encoder.blocks
    ]


def test_only_the_mask_decoder_learns():
    decoder = tiny_decoder()
    for _ in range(2):
        assert {name.split(".")[0] for name, p in decoder.named_parameters() if p.requires_grad} == {"mask_decoder"}
        assert all(p.requires_grad for p in decoder.mask_decoder.parameters())
        decoder.requires_grad_(True)  # as transformers' from_pretrained leaves it
        decoder.freeze()


# Against SamPredictor


@pytest.mark.once
@pytest.mark.parametrize("size", SIZES[:-1], ids=str)
@pytest.mark.parametrize("labels", [[1, 0, 1], [1, -1, -1]], ids=["clicks", "padded"])
def test_equals_sam_predictor(size: tuple[int, int], labels: list[int]):
    decoder, image, points = tiny_decoder(), noise_image(*size), clicks(size)
    predictor = SamPredictor(segment_anything_of(decoder))
    predictor.set_image(np.array(image))
    logits, iou, low_res = predictor.predict(
        points.numpy(), np.array(labels), multimask_output=False, return_logits=True
    )

    embeddings = decoder.encode_images([image])
    assert_close(embeddings, predictor.features, **close)
    with torch.no_grad():
        ours, our_iou, _ = decoder(embeddings, torch.tensor([0]), sparse_prompts(decoder, points, labels, size))
    assert_close(ours, torch.from_numpy(low_res), **close)
    assert_close(our_iou, torch.from_numpy(iou), **close)
    assert_close(decoder.upsample(ours, size), torch.from_numpy(logits), **close)


def test_point_encoding_is_the_prompt_encoders_without_the_label():
    decoder, sizes = tiny_decoder(), SIZES
    fractions = torch.rand(len(sizes), 4, 2, generator=torch.Generator().manual_seed(1))
    encoded = decoder.point_encoding(fractions, torch.tensor(sizes))
    for row, size, got in zip(fractions, sizes, encoded, strict=True):
        scale = 64 / max(size)
        in_square = row * torch.tensor([max(round(size[1] * scale), 1), max(round(size[0] * scale), 1)])
        theirs, _ = decoder.prompt_encoder((in_square[None], torch.ones(1, 4)), boxes=None, masks=None)
        assert_close(got, theirs[0, :4] - decoder.prompt_encoder.point_embeddings[1].weight, **close)


def test_images_of_any_size_and_kind():
    decoder = tiny_decoder()
    images = [noise_image(*size) for size in SIZES]
    pixels, sizes = decoder.preprocess(images)
    assert pixels.shape == (len(SIZES), 3, 64, 64) and sizes == SIZES
    as_tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    assert torch.equal(decoder.preprocess(as_tensors)[0], pixels)
    assert pixels[1, :, 26:].count_nonzero() == 0 and pixels[1, :, :26].count_nonzero() > 0  # 40 x 100 -> 26 x 64
    assert decoder.upsample(torch.zeros(2, 32, 32), SIZES[-1]).shape == (2, *SIZES[-1])


@pytest.mark.parametrize("image", [Image.new("L", (4, 4)), torch.zeros(3, 4, 4), torch.zeros(4, 4, 3).byte(), "a.png"])
def test_refuses_other_images(image: object):
    with pytest.raises(InputError, match="RGB"):
        tiny_decoder().preprocess([image])


def test_refuses_points_without_their_sizes():
    with pytest.raises(InputError, match=r"\(2, 3, 2\) and 1 sizes"):
        tiny_decoder().point_encoding(torch.zeros(2, 3, 2), [(4, 4)])


# Many at once


def test_images_times_prompts_in_one_pass_equal_one_by_one():
    decoder = tiny_decoder()
    sparse = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(2))
    index = torch.tensor([2, 0, 0, 1, 2])
    with torch.no_grad():
        embeddings = decoder.encode_images([noise_image(*size, seed=i) for i, size in enumerate(SIZES[:3])])
        low_res, iou, _ = decoder(embeddings, index, sparse)
        assert low_res.shape == (5, 32, 32) and iou.shape == (5,)
        for i, image in enumerate(index):
            alone = decoder.encode_images([noise_image(*SIZES[image], seed=int(image))])
            one, one_iou, _ = decoder(alone, torch.tensor([0]), sparse[i : i + 1])
            assert_close(low_res[i : i + 1], one, **close)
            assert_close(iou[i : i + 1], one_iou, **close)
    assert (low_res[1] - low_res[2]).abs().max() > 1e-3  # same image, other prompt


def test_gradients_reach_prompts_and_mask_decoder_and_no_frozen_part():
    decoder = tiny_decoder()
    sparse = torch.randn(1, 4, 32, requires_grad=True)
    low_res, iou, _ = decoder(decoder.encode_images([noise_image(20, 30)]), torch.tensor([0]), sparse)
    (decoder.upsample(low_res, (20, 30)).mean() + iou.mean()).backward()
    assert sparse.grad.abs().sum() > 0
    assert decoder.mask_decoder.mask_tokens.weight.grad[0].abs().sum() > 0
    frozen = [*decoder.prompt_encoder.parameters(), *decoder.image_encoder.parameters()]
    assert all(p.grad is None for p in frozen)
    decoder.image_encoder.requires_grad_(True)
    assert not decoder.encode_images([noise_image(20, 30)]).requires_grad


def test_positions_stay_exact_in_half_precision():
    decoder, points, sizes = tiny_decoder(), torch.rand(1, 3, 2), [(40, 60)]
    exact = decoder.point_encoding(points, sizes)
    labels, boxes = torch.ones(1, 3), torch.tensor([[0.1, 0.2, 0.7, 0.8]])
    clicked = decoder.clicks(points, sizes, labels, boxes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder.point_encoding(points, sizes), exact)
        assert torch.equal(decoder.clicks(points, sizes, labels, boxes), clicked)
    with torch.no_grad():
        sparse = torch.randn(1, 3, 32)
        expected, *_ = decoder(decoder.encode_images([noise_image(40, 60)]), torch.tensor([0]), sparse)
        half = decoder.to(torch.bfloat16)
        got, iou, _ = half(half.encode_images([noise_image(40, 60)]), torch.tensor([0]), sparse)
    assert half.point_encoding(points, sizes).dtype == torch.bfloat16
    assert half.clicks(points, sizes, labels, boxes).dtype == torch.bfloat16
    torch.testing.assert_close(half.clicks(points, sizes, labels, boxes).float(), clicked, atol=0.02, rtol=0.02)
    assert got.dtype == iou.dtype == torch.float32
    assert torch.corrcoef(torch.stack([got.flatten(), expected.flatten()]))[0, 1] > 0.95


# Weights


@pytest.mark.parametrize("changes", [{}, {"relative_position": False, "window_size": 0}], ids=["rel_pos", "plain"])
def test_sam_model_folder_gives_sam_models_own_output(tmp_path: Path, changes: dict):
    sam = tiny_sam(**changes)
    theirs = tiny_sam_model(sam, seed=3)
    theirs.save_pretrained(tmp_path)
    ours = SamDecoder(sam).eval()
    ours.load_weights(tmp_path)

    size = (40, 60)
    pixels, _ = ours.preprocess([noise_image(*size)])
    points = clicks(size) * torch.tensor([64 / 60, 43 / 40])  # in the square
    masks = torch.randn(1, 1, 32, 32)
    boxes = torch.tensor([[3.0, 4.0, 30.0, 41.0]])
    with torch.no_grad():
        prompts = {"input_points": points[None, None], "input_labels": torch.ones(1, 1, 3, dtype=torch.long)}
        output = theirs(pixel_values=pixels, **prompts, multimask_output=False)
        embeddings = ours.encode_images([noise_image(*size)])
        assert_close(embeddings, theirs.get_image_embeddings(pixels), **close)
        low_res, iou, _ = ours(embeddings, torch.tensor([0]), sparse_prompts(ours, clicks(size), [1, 1, 1], size))
        assert_close(low_res, output.pred_masks[0, 0], **close)
        assert_close(iou, output.iou_scores[0, 0], **close)
        # What our own prompts never touch is in its place as well.
        sparse, dense = ours.prompt_encoder(points=None, boxes=boxes, masks=masks)
        their_sparse, their_dense = theirs.prompt_encoder(None, None, boxes[None], masks)
        assert_close(sparse, their_sparse[0], **close)
        assert_close(dense, their_dense, **close)


def test_both_formats_give_the_same_tensors(tmp_path: Path):
    sam = tiny_sam()
    tiny_sam_model(sam).save_pretrained(tmp_path)
    decoder = SamDecoder(sam)
    decoder.load_weights(tmp_path)
    torch.save(segment_anything_of(decoder).state_dict(), tmp_path / "sam.pth")
    from_pth = load_sam_weights(tmp_path / "sam.pth")
    assert same(from_pth, load_sam_weights(str(tmp_path)))
    assert from_pth.keys() == decoder.state_dict().keys()


def test_shards_subfolders_and_tied_copies(tmp_path: Path):
    model = tiny_sam_model(tiny_sam())
    model.save_pretrained(tmp_path)
    whole = load_sam_weights(tmp_path)
    model.save_pretrained(tmp_path / "deep" / "er", max_shard_size="50KB")
    assert len(list(tmp_path.glob("deep/er/*.safetensors"))) > 1
    assert same(load_sam_weights(tmp_path / "deep", subfolder="er"), whole)

    tensors = load_file(tmp_path / "model.safetensors")
    original, tied = (
        "shared_image_embedding.positional_embedding",
        "prompt_encoder.shared_embedding.positional_embedding",
    )
    matrix = tensors.pop(original, None)
    tensors[tied] = tensors.pop(tied) if matrix is None else matrix
    assert same(rename_from_sam_model(tensors), whole)
    assert same(rename_from_sam_model({**tensors, original: tensors[tied].clone()}), whole)


def test_published_sam_model_names_fit_vit_b():
    with torch.device("meta"):
        theirs, ours = SamModel(SamConfig()), sam_model_registry["vit_b"]()
    renamed = rename_from_sam_model(theirs.state_dict())
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }


@pytest.mark.parametrize("variant, width, mlp", [("slimsam_50", 384, 1536), ("slimsam_77", 168, 696)])
def test_published_dimensions_of_slimsam(variant: str, width: int, mlp: int):
    config = SamConfig(vision_config=SamVisionConfig(hidden_size=width, mlp_dim=mlp))
    with torch.device("meta"):
        theirs, ours = (
            SamModel(config),
            SamDecoder(LensConfig(sam={"variant": variant, "include_image_encoder": True}).sam),
        )
    renamed = rename_from_sam_model(theirs.state_dict())
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }


def test_image_encoder_arrives_later_and_is_not_saved(tmp_path: Path):
    whole = tiny_decoder()
    torch.save(segment_anything_of(whole).state_dict(), tmp_path / "sam.pth")
    assert whole.unsaved_keys == set()

    decoder = SamDecoder(tiny_sam(include_image_encoder=False, weights=str(tmp_path / "sam.pth")))
    saved = set(decoder.state_dict())
    assert decoder.image_encoder is None and not any(name.startswith("image_encoder") for name in saved)
    with pytest.raises(LensError, match="load_image_encoder"):
        decoder.encode_images([noise_image(8, 8)])
    mask_decoder = {name: tensor.clone() for name, tensor in decoder.mask_decoder.state_dict().items()}
    decoder.load_image_encoder()
    assert same(decoder.mask_decoder.state_dict(), mask_decoder)  # the trained part is left alone
    assert set(decoder.state_dict()) - decoder.unsaved_keys == saved
    assert not any(p.requires_grad for p in decoder.image_encoder.parameters())
    image = [noise_image(30, 50)]
    assert torch.equal(decoder.encode_images(image), whole.encode_images(image))
    decoder.load_weights()
    assert same(decoder.state_dict(), whole.state_dict())


# What must not load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam")
    tiny_sam_model(tiny_sam()).save_pretrained(path)
    torch.save(tiny_decoder().state_dict(), path / "sam.pth")
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "sam.pth"])
@pytest.mark.parametrize("damage", ["half", "empty", "garbage head"])
def test_damaged_files(folder: Path, tmp_path: Path, name: str, damage: str):
    whole = (folder / name).read_bytes()
    broken = {"half": whole[: len(whole) // 2], "empty": b"", "garbage head": b"\xff" * 200 + whole[200:]}[damage]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(CheckpointMismatchError, match="damaged" if damage == "garbage head" else "truncated"):
        load_sam_weights(tmp_path / name if name.endswith(".pth") else tmp_path)


def test_other_dimensions_are_named_and_nothing_is_copied(folder: Path):
    decoder = tiny_decoder(seed=5, iou_head_dim=24)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(CheckpointMismatchError) as caught:
        decoder.load_weights(folder)
    assert "5 mismatched: mask_decoder.iou_prediction_head.layers.0.bias (expected (24,), got (16,))" in str(
        caught.value
    )
    assert same(decoder.state_dict(), before)


def test_missing_and_unexpected_tensors_are_named(folder: Path):
    decoder, weights = tiny_decoder(), load_sam_weights(folder)
    weights["mask_decoder.extra.weight"] = weights.pop("mask_decoder.iou_token.weight")
    message = "1 missing: mask_decoder.iou_token.weight; 1 unexpected: mask_decoder.extra.weight"
    with pytest.raises(CheckpointMismatchError, match=message):
        load_parts({"mask_decoder": decoder.mask_decoder}, weights, "here")
    load_parts({"prompt_encoder": decoder.prompt_encoder}, weights, "here")  # whose tensors are all there


def test_deeper_image_encoder_does_not_load(folder: Path):
    decoder = SamDecoder(tiny_sam(depth=3, include_image_encoder=False))
    with pytest.raises(CheckpointMismatchError, match=r"14 missing: image_encoder\.blocks\.2"):
        decoder.load_image_encoder(folder)
    assert decoder.image_encoder is None


def test_pickles_are_not_read_from_folders(folder: Path, tmp_path: Path):
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatchError, match=r"(?s)pytorch_model\.bin.*save_pretrained"):
        load_sam_weights(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"existing \.pth"):
        load_sam_weights(tmp_path / "pytorch_model.bin")


def test_pth_with_code_or_nesting(tmp_path: Path):
    torch.save({"weights": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointMismatchError, match="more than tensors"):
        load_sam_weights(tmp_path / "code.pth")
    torch.save({"model": {"x": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointMismatchError, match=r"flat dict.*\['dict', 'int'\]"):
        load_sam_weights(tmp_path / "nested.pth")


def test_other_layouts_and_places(folder: Path, tmp_path: Path):
    save_file(tiny_decoder().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"SamModel.*image_encoder\.blocks\.0"):
        load_sam_weights(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="neither"):
        load_sam_weights(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(CheckpointMismatchError, match=r"existing \.pth"):
        load_sam_weights("nowhere/sam.pth")
    with pytest.raises(LensConfigError, match="weights"):
        SamDecoder(tiny_sam(weights=None)).load_weights()


def test_index_without_its_shard(folder: Path, tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointMismatchError, match=r"No model-00001-of-00002\.safetensors"):
        load_sam_weights(tmp_path)
    index.write_text("{")
    with pytest.raises(CheckpointMismatchError, match="damaged"):
        load_sam_weights(tmp_path)


def test_hub_repository_not_in_the_cache(tmp_path: Path):
    with pytest.raises(CheckpointMismatchError, match=r"expected model\.safetensors"):
        load_sam_weights("facebook/sam-vit-base", cache_dir=tmp_path, local_files_only=True)


def test_hub_repository_from_the_cache(folder: Path, tmp_path: Path):
    commit = "0" * 40
    repo = tmp_path / "models--someone--tiny-sam"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for revision in (None, commit):
        weights = load_sam_weights("someone/tiny-sam", cache_dir=tmp_path, local_files_only=True, revision=revision)
        assert same(weights, load_sam_weights(folder))


@pytest.mark.once
@pytest.mark.parametrize("size", [(50, 70), (64, 64), (90, 30), (128, 128)])
def test_downsample_is_the_reverse_of_upsample(size):
    decoder = tiny_decoder()
    height, width = size
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, : height // 2, width // 2 :] = True
    covered = decoder.downsample(mask)
    assert covered.shape == (1, 32, 32) and covered.min() >= 0 and covered.max() <= 1
    back = decoder.upsample(covered - 0.5, size) > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.9


def blobs() -> torch.Tensor:
    """(9, 32, 32): noise, noise that is high in one place only (corners, edges, a dot), and nothing high at all."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(9, 32, 32, generator=generator)
    noise[1:] = noise[1:].clamp(max=-0.5)
    for k, place in enumerate(((0, 0), (31, 31), (0, 20), (13, 0), (31, 5)), start=1):
        noise[k][place] = 6
    noise[6, 10:19, 3:8] = 4
    noise[7, 30:, 1:31] = 4
    return noise


@pytest.mark.once
@pytest.mark.parametrize("size", [*SIZES, (2, 200), (100, 150), (96, 128), (600, 800), (1201, 800), (700, 1203)])
def test_masks_are_thresholded_logits_of_one_prompt_at_a_time(size):
    decoder, low_res = tiny_decoder(), blobs()
    logits = decoder.upsample(low_res, size)
    for threshold in (0.43, 0.5, 0.6, 0.0):
        with Largest() as largest:
            masks = decoder.masks(low_res, size, threshold)
        assert masks.shape == logits.shape and masks.dtype == torch.bool
        cut = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        certain = (logits - cut).abs() > 1e-4
        assert torch.equal(masks[certain], (logits > cut)[certain])
        assert largest.numel <= max(size[0] * size[1], decoder.sam["image_size"] ** 2, low_res.numel())


@pytest.mark.once
def test_only_where_an_outline_may_be_a_mask_is_brought_to_the_images_size():
    decoder, size = tiny_decoder(), (1920, 2560)
    small = torch.full((1, 32, 32), -5.0)
    small[0, 4:8, 10:14] = 5
    for low_res in (small, -small):  # an object, and all but an object
        with Largest() as largest:
            masks = decoder.masks(low_res, size, 0.5)
        assert torch.equal(masks, decoder.upsample(low_res, size) > 0)
        assert largest.numel < 0.1 * size[0] * size[1]
    for value in (-5.0, 5.0):
        with Largest() as largest:
            masks = decoder.masks(torch.full((1, 32, 32), value), size, 0.5)
        assert masks.all() if value > 0 else not masks.any()
        assert largest.numel <= decoder.sam["image_size"] ** 2


@pytest.mark.once
@pytest.mark.parametrize("size", [*SIZES, (600, 800), (601, 800), (800, 601), (601, 803)])
def test_an_accelerator_brings_one_box_to_the_images_size(size, monkeypatch):
    decoder, low_res = tiny_decoder(), blobs()
    tiled = decoder.masks(low_res, size, 0.6)
    monkeypatch.setattr(square, "_runs", square._box)
    assert torch.equal(decoder.masks(low_res, size, 0.6), tiled)


def test_more_prompts_than_are_decoded_at_once():
    decoder = tiny_decoder()
    count = 2 * PROMPTS_AT_ONCE["cpu"] + 1
    embeddings = decoder.encode_images([noise_image(64, 50), noise_image(30, 64, seed=1)])
    index, sparse = torch.arange(count) % 2, torch.randn(count, 3, 32, generator=torch.Generator().manual_seed(0))
    sizes = []
    decoder.mask_decoder.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["sparse_prompt_embeddings"])), with_kwargs=True
    )
    masks, iou, _ = decoder(embeddings, index, sparse)
    assert max(sizes) == PROMPTS_AT_ONCE["cpu"] and sum(sizes) == count
    for k in range(count):
        alone, quality, _ = decoder(embeddings, index[k : k + 1], sparse[k : k + 1])
        assert_close(masks[k], alone[0], **close)
        assert_close(iou[k], quality[0], **close)
