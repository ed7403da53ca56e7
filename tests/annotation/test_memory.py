"""Memory does not grow with the data: of pictures and masks no more are kept than two batches have."""

from __future__ import annotations

import gc
import weakref

from benchmarks import annotate_memory
from lens_adapter import annotate
from tests.annotation.standin import standin, write_jsonl, write_pictures


def test_pictures_and_masks_are_let_go(tmp_path):
    names = write_pictures(tmp_path, 8)
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": name, "prompt": "a dog"} for name in names * 50])
    pictures, masks, most = [], [], []  # weak references: pictures cannot be hashed

    def watched(images, prompts):
        pictures.extend(map(weakref.ref, images))
        outputs = standin(images, prompts)
        masks.extend(weakref.ref(output.masks) for output in outputs)
        gc.collect()
        most.append([sum(kept() is not None for kept in some) for some in (pictures, masks)])
        return outputs

    annotate(watched, listed, tmp_path / "out", shard_size=100, batch_size=4, workers=1)
    assert len(most) == 100
    assert max(kept for kept, _ in most) <= 8 and max(kept for _, kept in most) <= 8


def test_the_measurement_measures(tmp_path):
    found = annotate_memory.measure("list", 40, tmp_path)
    assert found["rows"] == 80 and found["resident_mib_at_most"] > 50
