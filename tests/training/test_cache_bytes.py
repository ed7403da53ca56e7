"""The benchmark of cached features: its formulae are held against real folders, and it runs."""

from __future__ import annotations

import json

import pytest
import transformers

from benchmarks.cached_features import DTYPES, LLAVA, QWEN, Sequence, feature_bytes, main, measured_bytes, seven_billion
from lens_adapter.training import cache_features
from tests.tiny.adapters import tiny_trio
from tests.tiny.benchmark_base import use_tiny_base
from tests.tiny.shipped import ship_tiny, use_shipped
from tests.tiny.training import toy_samples


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("fusion", ["mirror", "lite"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_on_disk(tmp_path, architecture, fusion, dtype):
    adapter = tiny_trio(architecture, fusion)[0]
    features = cache_features(adapter, toy_samples(2), tmp_path / "f", dtype=dtype)
    row = features[1].tensors
    three_axes = architecture == "qwen2_vl" and transformers.__version__.startswith("4.")  # of M-RoPE, kept apart
    sequence = Sequence(
        tokens=len(row["hidden"]),
        image_tokens=len(row["boxes"]),
        rotary=2 * 8 * (3 if three_axes else 1),
        indices=1 if architecture == "llava" else 0,
    )
    assert sequence.tokens > sequence.image_tokens >= 4
    assert feature_bytes(adapter.config, sequence, 4, dtype) == measured_bytes(features, 1)
    counted = sum(measured_bytes(features, 1).values()) - features[1].embedding.nbytes
    rest = sum(x.nbytes for x in row.values()) - counted
    assert 0 < rest < 300  # texts and run lengths


@pytest.mark.once
def test_7b_models_are_what_their_names_say():
    for facts, layers, width, image_tokens in ((LLAVA, 32, 4096, 576), (QWEN, 28, 3584, 391)):
        configs, sequence = seven_billion(facts)
        for config in configs.values():
            assert (config.num_hidden_layers, config.hidden_size) == (layers, width)
        assert sequence.image_tokens == image_tokens and sequence.rotary == 256
        assert configs["lite"].attention_layers == [layers // 2 - 1, layers // 2]


@pytest.mark.once
def test_it_runs(tmp_path, monkeypatch, capsys):
    ship_tiny(tmp_path)
    use_shipped(monkeypatch, tmp_path)
    monkeypatch.setattr("benchmarks.cached_features.seven_billion_bytes", dict)
    file = tmp_path / "figures.json"
    main(["--examples", "4", "--epochs", "1", "--batch-size", "2", "--json", str(file)])
    assert "| mirror |" in capsys.readouterr().out
    found = json.loads(file.read_text())["builtin"]
    for head in ("mirror", "lite"):
        assert found[head]["samples"] == 4 and found[head]["largest_difference_of_losses"] < 1e-4
        seconds = found[head]["epoch_seconds"]
        assert found[head]["times_faster"] == pytest.approx(seconds["live"] / seconds["cached"], rel=0.01)
        assert found[head]["goal_of_10_met"] == (seconds["live"] / seconds["cached"] >= 10)


@pytest.mark.once
def test_a_base_with_random_weights(tmp_path, monkeypatch, capsys):
    """The way that a 7B base goes, with a base that is as small as can be; what others measured stays in the file."""
    use_tiny_base(monkeypatch)
    monkeypatch.setattr("benchmarks.cached_features.seven_billion_bytes", dict)
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"builtin": {"kept": True}, "shapes": {"tiny, cuda": {}}}))
    options = ["--base", "tiny", "--steps", "2", "--batch-size", "2", "--heads", "mirror", "--json", str(file)]
    main([*options, "--dtype", "float32"])
    assert "| tiny, cpu | mirror |" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["builtin"] == {"kept": True} and list(found["shapes"]) == ["tiny, cuda", "tiny, cpu"]
    one = found["shapes"]["tiny, cpu"]["mirror"]
    assert one["record"]["base"] == "tiny" and one["samples"] == 4 and one["pictures"] == 2
    assert one["first_losses"]["live"] == pytest.approx(one["first_losses"]["cached"], abs=1e-4)
    step = one["step_milliseconds"]
    assert one["times_faster"] == pytest.approx(step["live"] / step["cached"], rel=0.05)
    assert one["disk_bytes_per_sample"] > 0 < one["disk_bytes_per_picture"]
