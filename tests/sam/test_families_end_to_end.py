"""Every family under every fusion: from a base and a folder to masks, training, a checkpoint and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lens_adapter import EmbeddingCache, LensAdapter, LensConfig, LensOutput, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.config import BUILTIN_SAM
from lens_adapter.errors import CheckpointMismatchError, StaleFeaturesError
from lens_adapter.sam.families import FAMILIES
from lens_adapter.training import cache_features
from lens_adapter.training.tuning import TUNINGS
from tests.tiny.adapters import weights_of
from tests.tiny.families import INSTALLED
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, tiny_sam
from tests.tiny.training import curve, make_trainer, toy_samples

IMAGE, PROMPTS = noise_image(50, 90), ["the cat", "a dog on the left"]
SQUASHED = [name for name in INSTALLED if FAMILIES[name].squashed]


def adapter_for(folder: Path, fusion: str = "lite", **fields: object) -> LensAdapter:
    torch.manual_seed(0)
    fields = {"fusion_width": 32, "fusion_layers": 1, "presence_question": None, **fields}
    if fusion == "readout":
        fields |= {"readout": {"heads": [[0, 0], [1, 1]]}, "attention_layers": [0, 1], "tap_layer": 1}
    adapter = LensAdapter.from_model(*tiny_pair("llava"), fusion=fusion, sam=str(folder), **fields)
    if fusion == "readout":
        adapter.head.weight.normal_()
    return adapter.eval()


def masks_of(adapter: LensAdapter) -> LensOutput:
    return adapter.segment(IMAGE, PROMPTS, return_logits=True, mask_threshold=0.5)


def assert_same(one: LensOutput, two: LensOutput) -> None:
    """The same masks; logits and scores but for rounding."""
    assert torch.equal(one.masks, two.masks)
    torch.testing.assert_close(one.logits, two.logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(one.scores, two.scores, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["lite", "mirror", "readout"])
@pytest.mark.parametrize("family", INSTALLED)
def test_segments_saves_and_comes_back(family, fusion, folders, tmp_path):
    adapter = adapter_for(folders[family], fusion)
    out = masks_of(adapter)
    assert out.masks.shape == (2, 50, 90) and out.logits.isfinite().all()
    assert ((out.scores >= 0) & (out.scores <= 1)).all()
    adapter.save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts["sam"]["family"] == family and "auto_map" not in json.dumps(facts["sam"])
    assert FAMILIES[family].title in (tmp_path / "README.md").read_text()
    loaded = LensAdapter.from_pretrained(tmp_path)
    assert loaded.config.sam == adapter.config.sam and loaded.digest() == adapter.digest()
    saved = {name.split(".")[1] for name in loaded._saved_tensors() if name.startswith("decoder.")}
    assert ("mask_decoder" in saved) == (fusion != "readout") and "image_encoder" not in saved
    loaded.attach(*tiny_pair("llava"))
    assert_same(out, masks_of(loaded))


@pytest.mark.parametrize("family", INSTALLED)
def test_quality_and_object_score_reach_the_scores(family, folders):
    adapter = adapter_for(folders[family])
    out, decoder, sizes = masks_of(adapter), adapter.decoder, [(50, 90)] * 2
    with torch.no_grad():
        prompts = adapter.head(adapter.base.read([IMAGE] * 2, PROMPTS))
        found = decoder(
            decoder.encode_images([IMAGE]), torch.zeros(2, dtype=torch.long), decoder.sparse_prompts(prompts, sizes)
        )
    torch.testing.assert_close(out.scores, found.score.clamp(0, 1), atol=1e-6, rtol=1e-5)
    if FAMILIES[family].has_object_score:
        assert (found.presence < 1).all() and (out.scores < found.quality).all()
    else:
        assert found.presence is None


@pytest.mark.parametrize("family", INSTALLED)
def test_a_checkpoint_may_hold_the_image_encoder(family, folders, tmp_path):
    adapter = adapter_for(folders[family])
    sam = {**adapter.config.sam, "include_image_encoder": True}
    adapter = LensAdapter.from_model(*tiny_pair("llava"), fusion="lite", fusion_width=32, sam=sam).eval()
    out = masks_of(adapter)
    adapter.config.sam["weights"] = None  # nothing to load it from
    adapter.save_pretrained(tmp_path)
    loaded = LensAdapter.from_pretrained(tmp_path).attach(*tiny_pair("llava"))
    assert_same(out, masks_of(loaded))


@pytest.mark.parametrize(("family", "tuning"), [(name, tuning) for name in INSTALLED for tuning in TUNINGS])
def test_learns(family, tuning, folders, tmp_path):
    adapter = adapter_for(folders[family])
    before = weights_of(adapter)
    trainer = make_trainer(tmp_path, adapter, samples=toy_samples(4), max_steps=2, decoder_tuning=tuning)
    trainer.train()
    assert len(curve(trainer)) == 2
    changed = {name for name, value in weights_of(adapter).items() if name in before and value != before[name]}
    tuned = {name for name in changed if name.startswith("decoder.")}
    assert any(name.startswith("head.") for name in changed)
    assert bool(tuned) == (tuning != "frozen")
    assert all(name.startswith("decoder.mask_decoder.") and "conv_s" not in name for name in tuned)
    if FAMILIES[family].has_object_score and tuning == "full":
        assert any("obj_score" in name for name in tuned)
    if tuning == "frozen":  # saved as it was, see above
        return
    out = masks_of(adapter.eval())
    adapter.save_pretrained(tmp_path / "head")
    loaded = LensAdapter.from_pretrained(tmp_path / "head").attach(*tiny_pair("llava"))
    assert_same(out, masks_of(loaded))


@pytest.mark.parametrize("family", INSTALLED)
def test_features_are_cached_and_learned_from(family, folders, tmp_path):
    adapter, samples = adapter_for(folders[family]), toy_samples(3)
    features = cache_features(adapter, samples, tmp_path / "features", batch_size=2)
    losses = {}
    for name, data in (("examples", samples), ("features", features)):
        trainer = make_trainer(tmp_path, adapter_for(folders[family]), samples=data, max_steps=2)
        trainer.train()
        losses[name] = torch.tensor(curve(trainer))
    torch.testing.assert_close(losses["features"], losses["examples"], atol=1e-4, rtol=1e-4)


def test_features_of_another_family_or_encoder_are_stale(folders, tmp_path):
    samples, folder = toy_samples(3), tmp_path / "features"
    cache_features(adapter_for(folders["sam2"]), samples, folder)
    with pytest.raises(StaleFeaturesError, match="sam: expected"):
        cache_features(adapter_for(folders["sam_hq"]), samples, folder)
    adapter = adapter_for(folders["sam2"])
    adapter.encode_images([IMAGE])
    with torch.no_grad():
        adapter.decoder.mask_decoder.conv_s0.weight.add_(1)  # part of what encodes an image
    with pytest.raises(StaleFeaturesError, match="sam_weights"):
        cache_features(adapter, samples, folder)


@pytest.mark.parametrize("family", SQUASHED)
def test_kept_embeddings_are_those_of_the_whole_encoding(family, folders):
    adapter = adapter_for(folders[family])
    adapter.embedding_cache = EmbeddingCache()
    first = adapter.encode_images([IMAGE])[0]
    assert adapter.encode_images([IMAGE])[0] is first and adapter.embedding_cache.nbytes == first.nbytes
    for parameter in (adapter.decoder.mask_decoder.conv_s1.weight, adapter.decoder.no_memory_embedding):
        with torch.no_grad():
            parameter.add_(1)
        second = adapter.encode_images([IMAGE])[0]
        assert second is not first and not torch.equal(second, first)
        first = second


def test_a_head_refuses_another_family_by_name(folders, tmp_path):
    adapter_for(folders["sam2"]).save_pretrained(tmp_path)
    for other, title in ((str(folders["sam_hq"]), "SAM-HQ"), ("builtin", "segment-anything"), (tiny_sam(), "segment")):
        with pytest.raises(CheckpointMismatchError, match=rf"trained with SAM 2 and cannot decode with {title}"):
            LensAdapter.from_pretrained(tmp_path, sam=other)
    kept = LensAdapter.from_pretrained(tmp_path, sam=LensConfig.from_pretrained(tmp_path).sam)
    assert kept.config.sam["family"] == "sam2"
    assert "family" not in BUILTIN_SAM  # heads of segment-anything are described as they always were


def test_the_one_that_ships(tmp_path, monkeypatch):
    """It is named, not copied, and needs no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, processor = builtin.load_base()
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="builtin-sam2", **builtin.QUESTIONS)
    adapter.fit(count=20)
    exam = make_exam(3, "validation")
    out = adapter.segment(exam.picture, exam.prompts)
    assert out.found.any()
    adapter.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 30_000
    again = LensAdapter.from_pretrained(tmp_path).attach(model, processor)
    assert again.config.sam["weights"] == "builtin-sam2"
    assert torch.equal(again.segment(exam.picture, exam.prompts).masks, out.masks)
