"""Read attention and hidden states off a model, without any head and without any training.

    python examples/capture_attention_only.py

The same for LLaVA-1.5 or Qwen2.5-VL, loaded as in segment.py's docstring, under eager and sdpa attention: only the rows
asked for are computed, so it does not run out of memory as `output_attentions=True` does.
"""

import torch

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN

model, processor = builtin.load_base()
adapter = LensAdapter.from_model(model, processor, fusion="lite", sam="vit_b", load_sam=False)  # nothing is downloaded

image = SHOWN[0].scene().draw(480)
# What your processor makes of a picture and a question; `template` because this one is asked as it stands.
inputs = adapter.base.build_inputs([image], ["where is the leftmost object ?"], template="{prompt}")
(layout,) = adapter.layout(inputs, [(image.height, image.width)])  # which region each image token sees

with adapter.capture(query="last", layers=[1, 2]) as signals:
    tokens = model.generate(**inputs, max_new_tokens=8)  # any forward of yours; its outputs are unchanged

rows = signals.attention[2]  # (1, heads, 1, T): where the last prompt token looks
on_image = rows[0, :, 0, layout.positions].mean(0)  # (image tokens,)
x0, y0, x1, y1 = layout.boxes[on_image.argmax()].tolist()
print(f"The answer: {processor.decode(tokens[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)}")
print(f"{on_image.sum():.0%} of the attention is on the image, most at x {x0:.2f}-{x1:.2f}, y {y0:.2f}-{y1:.2f}")
print(f"{len(signals.steps)} more forwards were recorded, one per new token, hidden {tuple(signals.hidden.shape)}")
assert torch.isclose(rows.sum(-1), torch.ones(())).all()  # each is a softmax over all tokens
