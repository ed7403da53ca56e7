"""Where does a model look? The heat of attention heads over a picture, in one line each, without a SAM.

    python examples/where_it_looks.py docs/where-it-looks.png

The same for LLaVA-1.5 or Qwen2.5-VL, under sdpa and flash attention, loaded as in segment.py's docstring: only the rows
of one token are computed, so nothing runs out of memory as with `output_attentions=True`.
"""

import sys

from PIL import Image, ImageDraw

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN
from lens_adapter.pictures.text import font

SIDE, GAP, TOP = 300, 12, 34
model, processor = builtin.load_base()
adapter = LensAdapter.from_model(model, processor, fusion="readout", sam="builtin", **builtin.QUESTIONS)
image = SHOWN[0].scene().draw(SIDE)
prompt = next(iter(SHOWN[0].prompts))

pictures = {f"“{prompt}”": image}
pictures["layer 2, all heads"] = adapter.look(image, prompt, layer=2)
pictures["layer 3, head 2"] = adapter.look(image, prompt, layer=3, head=2)
adapter.fit(count=50)
pictures["a readout fitted in seconds"] = adapter.look(image, prompt)

page = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE + TOP), "white")
draw = ImageDraw.Draw(page)
for place, (title, picture) in enumerate(pictures.items()):
    left = place * (SIDE + GAP)
    draw.text((left, 6), title, (28, 32, 38), font(17))
    page.paste(picture, (left, TOP))
page.save(sys.argv[1] if len(sys.argv) > 1 else "where-it-looks.png")
print(f"{prompt}: {len(pictures)} pictures of {SIDE} x {SIDE} pixels")
