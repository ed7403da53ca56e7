from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from lens_adapter.config import SAM_VARIANTS, LensConfig
from lens_adapter.errors import LensConfigError

SMALL_SAM = {"image_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "global_attention_layers": [1]}


def test_defaults_are_those_of_the_method():
    config = LensConfig()
    assert isinstance(config, PretrainedConfig) and config.model_type == "lens"
    assert (config.fusion, config.fusion_layers, config.attention_layers) == ("mirror", 2, [])
    assert (config.num_keypoints, config.suppression_radius, config.keypoint_threshold) == (16, 4.0, 0.4)
    assert config.mask_threshold == 0.6 and config.sam["variant"] == "vit_b"
    assert config.base_model_type is None
    assert LensConfig(base_config={"model_type": "llava"}).base_model_type == "llava"


@pytest.mark.parametrize(("layers", "tap"), [(32, 16), (5, 2), (2, 1)])
def test_tap_is_in_the_middle_unless_told(layers, tap):
    assert LensConfig(num_hidden_layers=layers, fusion="lite").tap_layer == tap
    assert LensConfig(num_hidden_layers=layers, fusion="lite", tap_layer=0).tap_layer == 0


def test_lite_reads_the_attention_before_and_at_its_tap():
    assert LensConfig(fusion="lite", tap_layer=7).attention_layers == [6, 7]
    assert LensConfig(fusion="lite", tap_layer=0).attention_layers == [0]
    assert LensConfig(fusion="lite", attention_layers=(3, 5)).attention_layers == [3, 5]
    assert LensConfig(fusion="mirror", attention_layers=[3]).attention_layers == [3]


IMPOSSIBLE: list[tuple[str, Any]] = [
    ("fusion", "heavy"),
    ("fusion", None),
    ("tap_layer", -1),
    ("tap_layer", 32),
    ("tap_layer", 1.5),
    ("fusion_layers", 0),
    ("fusion_layers", 17),  # more than the base has from its middle on
    ("fusion_width", 100),
    ("fusion_width", 0),
    ("attention_layers", 3),
    ("attention_layers", [32]),
    ("attention_layers", ["3"]),
    ("num_keypoints", 0),
    ("num_keypoints", True),
    ("suppression_radius", -1),
    ("suppression_radius", float("nan")),
    ("suppression_radius", float("inf")),
    ("keypoint_threshold", 1.0),
    ("mask_threshold", -0.1),
    ("mask_threshold", "0.6"),
    ("score_threshold", 2),
    ("prompt_template", "Where is it?"),
    ("prompt_template", None),
    ("routing_question", "Is it a wish?"),
    ("routing_question", None),
    ("base_model_name_or_path", 3),
    ("base_model_revision", 3),
    ("base_config", "llava"),
    ("training", {"steps": 3}),
    ("training", ["much"]),
    ("hidden_size", 0),
    ("num_hidden_layers", "32"),
    ("num_hidden_layers", None),
    ("num_attention_heads", 2.0),
    ("sam", 3),
    ("sam", None),
    ("sam", "vit_x"),
    ("sam", {"variant": "vit_x"}),
    ("sam", {"widht": 3}),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_by_name(key, value):
    with pytest.raises(LensConfigError, match=rf"LensConfig\.{key}\b"):
        LensConfig(**{key: value})


IMPOSSIBLE_SAM: list[tuple[str, Any]] = [
    *((key, 0) for key in ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "out_channels")),
    *((key, 1.5) for key in ("decoder_depth", "decoder_num_heads", "decoder_mlp_dim", "iou_head_dim")),
    ("image_size", 1000),  # not a multiple of 16
    ("num_heads", 5),  # does not divide 768
    ("out_channels", 100),
    ("decoder_num_heads", 3),
    ("mask_in_channels", 6),
    ("window_size", -1),
    ("mlp_ratio", 0),
    ("relative_position", 1),
    ("include_image_encoder", "yes"),
    ("global_attention_layers", [12]),
    ("global_attention_layers", 2),
    ("pixel_mean", [1, 2]),
    ("pixel_mean", "rgb"),
    ("pixel_std", [1, 2, 0]),
    ("weights", 3),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE_SAM)
def test_an_impossible_dimension_of_sam_is_refused_by_name(key, value):
    with pytest.raises(LensConfigError, match=rf"LensConfig\.sam\['{key}'\] must be .* got"):
        LensConfig(sam={"variant": "vit_b", key: value})


def test_the_message_names_value_and_what_is_allowed():
    with pytest.raises(LensConfigError, match=r"tap_layer must be a layer index from 0 to 7; got 8\."):
        LensConfig(num_hidden_layers=8, tap_layer=8)


@pytest.mark.parametrize("variant", SAM_VARIANTS)
def test_a_variant_of_sam_is_spelt_out(variant):
    sam = LensConfig(sam=variant).sam
    assert sam == {"variant": variant, "include_image_encoder": False, **SAM_VARIANTS[variant]}
    assert LensConfig(sam={"variant": variant, "weights": "here.pth"}).sam == {**sam, "weights": "here.pth"}
    assert LensConfig(sam=sam).sam == sam


def test_custom_dimensions_of_sam_have_no_published_weights():
    sam = LensConfig(sam=SMALL_SAM).sam
    assert sam["variant"] == "custom" and sam["weights"] is None
    assert {key: sam[key] for key in SMALL_SAM} == SMALL_SAM
    assert sam["patch_size"] == SAM_VARIANTS["vit_b"]["patch_size"]


def test_editing_one_config_leaves_the_table_of_variants():
    LensConfig(sam="vit_b").sam["pixel_mean"][0] = -1.0
    assert LensConfig(sam="vit_b").sam["pixel_mean"][0] == 123.675


@pytest.fixture
def warnings_logged():
    """Messages of transformers' logger, which does not hand them on to the root."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = transformers_logging.get_logger("lens_adapter.config")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_unknown_keys_warn_and_are_dropped(warnings_logged):
    config = LensConfig(num_keypoint=3, tap=1, mask_treshold=0.3)
    assert not hasattr(config, "num_keypoint") and "tap" not in config.to_dict()
    (message,) = warnings_logged
    assert "num_keypoint" in message and "tap" in message
    assert "Did you mean 'mask_threshold' and 'num_keypoints'?" in message


@pytest.mark.parametrize(
    "fields, meant",
    [
        ({"fusion": "miror"}, "mirror"),
        ({"sam": "sam2.1-smal"}, "sam2.1-small"),
        ({"sam": "bultin"}, "builtin"),
        ({"sam": "builtin-sam"}, "builtin-sam2"),
        ({"sam": {"variant": "vit_b", "widow_size": 7}}, "window_size"),
        ({"sam": {"variant": "sam2.1-tiny", "revisoin": "x"}}, "revision"),
    ],
)
def test_a_mistyped_choice_is_asked_about(fields, meant):
    with pytest.raises(LensConfigError, match=f"Did you mean '{meant}'"):
        LensConfig(**fields)


def test_known_keys_of_transformers_pass_without_a_word(warnings_logged):
    config = LensConfig(architectures=["LensAdapter"], dtype="bfloat16", name_or_path="somewhere")
    assert config.architectures == ["LensAdapter"] and warnings_logged == []


EXAMPLES: dict[str, dict[str, Any]] = {
    "defaults": {},
    # The tap of the class's default where another would follow from these layers: it must be written all the same.
    "a tap that is the default of other depths": {"num_hidden_layers": 24, "tap_layer": 16, "fusion": "lite"},
    "small": {
        "fusion": "lite",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "attention_layers": [0, 3],
        "sam": SMALL_SAM,
        "suppression_radius": 1,
        "prompt_template": "Point at {prompt}, 请。",
        "routing_question": "is {prompt} a wish ?",
        "base_model_name_or_path": "org/base",
        "base_model_revision": "a" * 40,
        "base_config": {"model_type": "llava", "text_config": {"hidden_size": 64, "rope_scaling": None}},
    },
    "weights named": {"sam": {"variant": "vit_l", "weights": None, "include_image_encoder": True}},
}


@pytest.mark.parametrize("fields", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_saved_and_loaded_is_the_same(fields, tmp_path, warnings_logged):
    config = LensConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded = LensConfig.from_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    ours = [key for key in written if key not in ("transformers_version", "model_type")]
    assert {"fusion", "tap_layer", "attention_layers", "sam", "prompt_template", "routing_question"} <= set(ours)
    assert {key: getattr(loaded, key) for key in ours} == {key: getattr(config, key) for key in ours}
    assert loaded.to_dict() == config.to_dict()
    assert warnings_logged == []


def test_an_override_on_loading_is_checked_like_any_other(tmp_path):
    LensConfig(num_keypoints=5).save_pretrained(tmp_path)
    config, unused = LensConfig.from_pretrained(
        tmp_path, mask_threshold=0.3, sam="vit_b", trust=1, return_unused_kwargs=True
    )
    assert (config.mask_threshold, config.num_keypoints, unused) == (0.3, 5, {"trust": 1})
    assert config.sam["embed_dim"] == SAM_VARIANTS["vit_b"]["embed_dim"]
    with pytest.raises(LensConfigError, match="mask_threshold"):
        LensConfig.from_pretrained(tmp_path, mask_threshold=3)


def test_a_saved_config_made_impossible_by_hand_is_refused(tmp_path):
    LensConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "tap_layer": 99}), "utf-8")
    with pytest.raises(LensConfigError, match="tap_layer"):
        LensConfig.from_pretrained(tmp_path)
