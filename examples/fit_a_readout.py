"""A head in seconds: choose the attention heads that point, and click on SAM where they do.

    python examples/fit_a_readout.py

The same for LLaVA-1.5 or Qwen2.5-VL, loaded as in segment.py's docstring: no labels, no training, a forward each.

    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="vit_b")
    print(adapter.fit().summary())             # on drawn scenes that come with the package
    print(adapter.fit("my-pictures").summary())   # or on photographs with masks, whose figures say more

What it reaches was measured on the built-in model alone; whether drawn scenes carry over to photographs is not known.
"""

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN

model, processor = builtin.load_base()
adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="builtin", **builtin.QUESTIONS)
print(adapter.fit(count=30).summary())
adapter.save_pretrained("my-readout")  # some kilobytes: LensAdapter.from_pretrained("my-readout")

image = SHOWN[0].scene().draw(480)
for prompt in SHOWN[0].prompts:
    out = adapter.segment(image, prompt)
    print(f"{prompt}: {int(out.masks.sum())} pixels, score {out.scores[0]:.2f}")
adapter.segment(image, list(SHOWN[0].prompts)).save("readout.png")
adapter.look(image, next(iter(SHOWN[0].prompts))).save("look.png")  # where the chosen heads look; no SAM needed
