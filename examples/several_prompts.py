"""Several prompts about several images; what is not there; and the formats that other tools read.

    python examples/several_prompts.py

The models are those of segment.py, whose docstring shows LLaVA-1.5 and Qwen2.5-VL; nothing else differs for them.
`batch_size` limits how many rows (image and prompt) run through the base together: with a 7B model, start with 4.
"""

from lens_adapter import builtin
from lens_adapter.builtin.demo import SHOWN

images = [shown.scene().draw(480) for shown in SHOWN]
prompts = [list(shown.prompts) for shown in SHOWN]  # [["the dog", "every cup"], ["a chair"], ...]: one list per image

adapter = builtin.load_head("lite").attach(*builtin.load_base())
outputs = adapter.segment(images, prompts, batch_size=4)  # one LensOutput per image

for out in outputs:
    polygons, rles = out.to_polygons(), out.to_coco_rle()
    for k, prompt in enumerate(out.prompts):
        verdict = (
            f"{len(polygons[k])} outline(s), RLE of {len(rles[k]['counts'])} bytes" if out.found[k] else "not there"
        )
        print(f"{prompt:<40} score {out.scores[k]:.2f}  {verdict}")
    # out.to_records() for JSON, out.to_supervision() for supervision's annotators and trackers, out.plot() for a
    # picture; out itself as the last line of a notebook's cell shows both picture and table.
