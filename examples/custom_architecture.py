"""A vision-language model that transformers does not know: one row says how its image tokens tile the image.

    python examples/custom_architecture.py

LLaVA-1.5 and Qwen2.5-VL have their rows already (so have the models of docs/supported-models.md). To see what a row is:
LLaVA's is `fixed_grid`, one token per patch of a square; Qwen2.5-VL's reads `image_grid_thw` of the processor's output.
They are in lens_adapter/vlm/architectures.py, and the families of layouts in layout/single.py and layout/tiled.py.
"""

from transformers import LlavaConfig, LlavaForConditionalGeneration

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN
from lens_adapter.vlm.architectures import Architecture, Layout, register
from lens_adapter.vlm.layout.single import fixed_grid


class MyConfig(LlavaConfig):
    model_type = "my_vlm"


class MyModel(LlavaForConditionalGeneration):  # in earnest a class of your own, from any package
    config_class = MyConfig


known, processor = builtin.load_base()
model = MyModel(MyConfig.from_dict({**known.config.to_dict(), "model_type": "my_vlm"})).eval()
model.load_state_dict(known.state_dict())

# Layers, attention and the image token are found by themselves. The layout's parameters are paths into the config.
register("my_vlm", Architecture(Layout(fixed_grid, {"patch": "vision_config.patch_size"})))

sam = {**builtin.load_head("lite").config.sam, "weights": str(builtin.SAM)}  # for your model: sam="vit_b"
adapter = LensAdapter.from_model(model, processor, fusion="lite", sam=sam)  # untrained: see train_on_a_folder.py
out = adapter.segment(SHOWN[0].scene().draw(480), "the leftmost object")
print(f"attached to {adapter.config.base_model_type!r}: heatmap {tuple(out.heatmaps.shape[1:])}, mask {out.image_size}")
