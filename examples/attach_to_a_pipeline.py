"""Two pipelines of transformers: the base's own chat pipeline learns to point; and one that segments.

    python examples/attach_to_a_pipeline.py

With LLaVA-1.5 or Qwen2.5-VL, MODEL and HEAD are the ids of segment.py's docstring, and pipelines take
`device_map="auto"` and `dtype="auto"` as ever.
"""

from transformers import pipeline

import lens_adapter.pipeline  # registers "lens-segmentation"
from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN

MODEL, HEAD = str(builtin.VLM), builtin.HEADS["lite"]
image = SHOWN[0].scene().draw(480)

# A chat pipeline that is there already: it answers as before, token by token, and its model can also segment.
chat = pipeline("image-text-to-text", model=MODEL)
question = [{"type": "image", "image": image}, {"type": "text", "text": "what is the leftmost object ?"}]
with LensAdapter.from_pretrained(HEAD).attach(chat) as adapter:
    answer = chat(text=[{"role": "user", "content": question}], max_new_tokens=24, return_full_text=False)
    out = adapter.segment(image, "the leftmost object")
print(f"The leftmost object: {answer[0]['generated_text'].strip()}, {int(out.masks.sum())} pixels")

# Or one that takes images and prompts, in the shape of "image-segmentation"; lists, generators and data sets too.
segment = pipeline(lens_adapter.pipeline.TASK, model=MODEL, adapter=HEAD)
scenes = ({"image": shown.scene().draw(480), "prompts": list(shown.prompts)} for shown in SHOWN)
for found in segment(scenes, batch_size=2):
    print([f"{entry['label']}: {entry['score']:.2f}, {entry['mask'].size}" for entry in found])
