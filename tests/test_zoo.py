"""Every architecture of AutoModelForImageTextToText: it works, or is refused with a reason."""

from __future__ import annotations

import pytest
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lens_adapter.errors import UnsupportedModelError
from lens_adapter.vlm.anatomy import REFUSED, find_anatomy
from tests.zoo import elsewhere, square, variable
from tests.zoo.checks import examine

ZOO = {**square.SPECIMENS, **variable.SPECIMENS, **elsewhere.SPECIMENS}


@pytest.mark.parametrize("architecture", sorted(ZOO))
def test_architecture_works(architecture):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    if int(transformers.__version__.partition(".")[0]) < ZOO[architecture].since:
        with pytest.raises(UnsupportedModelError, match="does not go through the attention interface"):
            examine(ZOO[architecture])
    else:
        examine(ZOO[architecture])


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
}


@pytest.mark.parametrize("architecture", sorted(WHY_REFUSED))
def test_what_cannot_work_is_refused_with_its_reason(architecture):
    if architecture not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip("not in this version of transformers")
    with pytest.raises(UnsupportedModelError, match=f".*is not supported: .*{WHY_REFUSED[architecture]}"):
        find_anatomy(StandIn(architecture))


def test_every_refusal_has_its_test():
    assert set(REFUSED) == set(WHY_REFUSED)


@pytest.mark.xfail(reason="the zoo is being filled", strict=True)
def test_no_architecture_is_unexamined():
    assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) <= set(ZOO) | set(REFUSED)
    assert not set(ZOO) & set(REFUSED)
