"""One image, one prompt, one mask: with the models that ship with the package.

    python examples/segment.py

With LLaVA-1.5 or Qwen2.5-VL only the first three lines differ (a head for each has to be trained or found first):

    name, head = "llava-hf/llava-1.5-7b-hf", "org/lens-llava-1.5-7b"
    name, head = "Qwen/Qwen2.5-VL-7B-Instruct", "org/lens-qwen2.5-vl-7b"

    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
    processor = AutoProcessor.from_pretrained(name)
    adapter = LensAdapter.from_pretrained(head)
"""

from transformers import AutoModelForImageTextToText, AutoProcessor

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN

model = AutoModelForImageTextToText.from_pretrained(builtin.VLM)
processor = AutoProcessor.from_pretrained(builtin.VLM)
adapter = LensAdapter.from_pretrained(builtin.HEADS["lite"])

image = SHOWN[0].scene().draw(480)  # or a path, a PIL image, an array
prompt = next(iter(SHOWN[0].prompts))  # or a text of yours: "the dog on the left"
with adapter.attach(model, processor):
    out = adapter.segment(image, prompt)

mask, score, keypoints = out.masks[0], out.scores[0], out.keypoints[0]  # bool (H, W), in [0, 1], (K, 2) in pixels
print(f"{prompt}: {int(mask.sum())} pixels, score {score:.2f}, first keypoint {keypoints[0].tolist()}")
out.save("overlay.png")
