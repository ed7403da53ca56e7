"""A video without training: prompts about every frame, masks as an animation.

    python examples/video.py              # writes video.gif
    python examples/video.py my.webp

The models are those of segment.py, whose docstring shows LLaVA-1.5 and Qwen2.5-VL; nothing else differs for them. A
head on SAM 2, EdgeTAM or SAM 3 can also carry masks from frame to frame by that family's own video model:

    video = adapter.segment_video(frames, prompts, track=True)

Frames of a file come from any decoder of videos, e.g. `torchcodec.decoders.VideoDecoder("my.mp4")[:]`, (T, 3, H, W).
"""

import sys

import numpy as np

from lens_adapter import builtin
from lens_adapter.builtin.world import Speaker, moving_scene
from lens_adapter.evaluation import overlap
from lens_adapter.evaluation.outlines import boundary_f

path = sys.argv[1] if len(sys.argv) > 1 else "video.gif"
scenes = moving_scene(2, frames=12)  # things that move over a background: each frame is a scene, with exact masks
frames = [scene.draw(384) for scene in scenes]
expression = Speaker(scenes[0], np.random.default_rng(0)).expression("attribute")

adapter = builtin.load_head("lite").attach(*builtin.load_base())
video = adapter.segment_video(frames, expression.text)

targets = list(expression.targets)
truths = [scene.masks(384)[targets].any(0) for scene in scenes]
masks = video.masks[:, 0].numpy()  # (T, H, W)
j = np.mean([overlap(mask, truth).iou for mask, truth in zip(masks, truths, strict=True)])
f = np.mean([boundary_f(mask, truth) for mask, truth in zip(masks, truths, strict=True)])
print(f"{expression.text}: in {int(video.found.sum())} of {len(video)} frames, J {j:.2f}, F {f:.2f}")
video.save(path, fps=8)
