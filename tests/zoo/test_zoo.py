"""Every architecture of AutoModelForImageTextToText: it works, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.errors import UnsupportedModelError
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.architectures import ARCHITECTURES
from lens_adapter.vlm.layout.tokens import token_layouts
from tests.zoo import page, stitched, tiles, uneven
from tests.zoo.checks import examine, noise_image
from tests.zoo.specimens import ZOO, architectures

REFUSED = {name for name, architecture in ARCHITECTURES.items() if architecture.refused}
SEVERAL_TILES = {**stitched.SPECIMENS, **tiles.SPECIMENS}


def specimen_of(architecture):
    if architecture not in {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *architectures()}:
        pytest.skip("not in this version of transformers")
    for module in ZOO[architecture].requires:
        pytest.importorskip(module)
    return ZOO[architecture]


@pytest.mark.parametrize("architecture", sorted(ZOO))
def test_architecture_works(architecture):
    specimen = specimen_of(architecture)
    if int(transformers.__version__.partition(".")[0]) < specimen.since:
        with pytest.raises(UnsupportedModelError, match="does not go through the attention interface"):
            examine(specimen)
        return
    found = page.measure(architecture)
    recorded = page.records().get(transformers.__version__, {}).get(architecture)
    assert found["works"] and (recorded is None or page.agree(found, recorded)), "run python -m tests.zoo.page"


def test_the_page_of_supported_models_is_what_was_recorded():
    assert page.PAGE.read_text() == page.render(page.records())
    newest = next(iter(page.records().values()))
    assert sum(facts["works"] for facts in newest.values()) >= 80


@pytest.mark.parametrize("architecture", sorted(SEVERAL_TILES))
def test_images_of_a_batch_are_told_apart(architecture):
    specimen = specimen_of(architecture)
    model, processor = specimen.build()
    height, width = specimen.image
    sizes = [(height, width), (height * 2 // 3, width * 2 // 3)]  # of which the second makes fewer tiles, if it can
    images = [noise_image(size) for size in sizes]
    layouts = token_layouts(find_anatomy(model), processor, specimen.ask(processor, images), sizes)
    for image, size, layout in zip(images, sizes, layouts, strict=True):
        (alone,) = token_layouts(find_anatomy(model), processor, specimen.ask(processor, [image]), [size])
        assert torch.equal(layout.boxes, alone.boxes)
        assert len((layout.positions - alone.positions).unique()) == 1  # the padding


@pytest.mark.parametrize("architecture", sorted(tiles.SPECIMENS))
def test_images_of_one_prompt_are_told_apart(architecture):
    specimen = specimen_of(architecture)
    model, processor = specimen.build()
    height, width = specimen.image
    sizes = [(height, width), (height // 2, width)]
    if architecture == "perception_lm":  # its processor wants as many tiles of each image
        sizes = [(height, width)] * 2
    images = [noise_image(size) for size in sizes]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]}
    inputs = processor(images=[images], text=[processor.apply_chat_template([turn])], return_tensors="pt")
    first, second = token_layouts(find_anatomy(model), processor, inputs, sizes)
    assert first.positions.max() < second.positions.min()
    for image, size, layout in zip(images, sizes, (first, second), strict=True):
        (alone,) = token_layouts(find_anatomy(model), processor, specimen.ask(processor, [image]), [size])
        assert torch.equal(layout.boxes, alone.boxes)
        assert torch.equal(layout.positions.diff(), alone.positions.diff())


def test_llava_over_a_tower_with_a_grid_for_every_image():
    examine(uneven.LLAVA_OVER_PIXTRAL)


@pytest.mark.parametrize("architecture", sorted(uneven.SPECIMENS))
def test_images_of_several_sizes_keep_their_places(architecture):
    specimen = specimen_of(architecture)
    model, processor = specimen.build()
    height, width = specimen.image
    sizes = [(height, width), (width, height), (height, height)]
    images = [noise_image(size) for size in sizes]
    together = token_layouts(find_anatomy(model), processor, specimen.ask(processor, images), sizes)
    for layout, image, size in zip(together, images, sizes, strict=True):
        (alone,) = token_layouts(find_anatomy(model), processor, specimen.ask(processor, [image]), [size])
        assert layout.grid == alone.grid
        torch.testing.assert_close(layout.boxes, alone.boxes)
    assert len({layout.grid for layout in together}) == 3


class StandIn(PreTrainedModel):
    """A model of any architecture, without its weights."""

    def __init__(self, architecture: str):
        pair = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "bert"}}
        super().__init__(AutoConfig.for_model(architecture, **pair if architecture == "vision-encoder-decoder" else {}))


RESAMPLED = ("aria", "blip-2", "deepseek_ocr2", "idefics", "idefics2", "instructblip", "instructblipvideo")
WHY_REFUSED = {
    **dict.fromkeys((*RESAMPLED, "kosmos-2", "kosmos-2.5"), "learned queries .*, which have no place in the image"),
    **dict.fromkeys(("blip", "git"), "does not go through the attention interface"),
    **dict.fromkeys(("EvollaModel", "evolla"), "proteins"),  # the first under transformers 4
    "mistral4": "no vision tower",
    "pi0": "actions, not text",
    "pp_formulanet": "takes no prompt",
    "udop": "boxes of an OCR engine",
    "vision-encoder-decoder": "not as a prompt",
    **({"emu3": "drops the images"} if transformers.__version__.startswith("4.") else {}),
}


@pytest.mark.parametrize("architecture", sorted(WHY_REFUSED))
def test_what_cannot_work_is_refused_with_its_reason(architecture):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    with pytest.raises(UnsupportedModelError, match=f".*is not supported: .*{WHY_REFUSED[architecture]}"):
        find_anatomy(StandIn(architecture))


def test_every_refusal_has_its_test():
    assert set(WHY_REFUSED) == REFUSED


def test_no_architecture_is_unexamined():
    assert architectures() <= set(ZOO) | REFUSED
    assert not set(ZOO) & REFUSED
