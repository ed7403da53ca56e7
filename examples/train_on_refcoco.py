"""Train a LENS head on RefCOCO in the REFER layout, and measure it on its validation split.

    python examples/train_on_refcoco.py                     # the built-in model, on a RefCOCO in miniature
    python examples/train_on_refcoco.py llava-hf/llava-1.5-7b-hf refer_seg my-head

Qwen2.5-VL ("Qwen/Qwen2.5-VL-7B-Instruct") or any other model goes in the place of LLaVA-1.5. Data and a whole recipe:
https://github.com/lichengunc/refer, docs/train.md. From the command line, with refcoco+, refcocog or grefcoco as well:

    lens-adapter train --model llava-hf/llava-1.5-7b-hf -o my-head --head fusion=lite \\
        --data refer_seg format=refer dataset=refcoco split=train --validation refer_seg format=refer split=val
"""

import json
import pickle
import sys
from pathlib import Path

import torch
from pycocotools import mask as coco
from transformers import AutoModelForImageTextToText, AutoProcessor

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.data.examples import Examples
from lens_adapter.data.refer import read_refer
from lens_adapter.training import LensTrainer, LensTrainingArguments


def write_miniature(root: Path, scenes: int) -> None:
    """Scenes of the built-in world where RefCOCO keeps COCO's train2014, and what is said about them where its is."""
    references, images, objects = [], [], []
    folder = root / "images" / "train2014"
    for part in (folder, root / "refcoco"):
        part.mkdir(parents=True, exist_ok=True)
    for index, exam in ((index, make_exam(index, "train")) for index in range(scenes)):
        images.append({"id": index, "file_name": f"COCO_train2014_{index:012}.png", "height": 384, "width": 384})
        exam.picture.save(folder / images[-1]["file_name"])
        for case in (case for case in exam.cases if case.has_target):
            rle = coco.encode(case.truth.astype("uint8", order="F"))
            region = {"size": rle["size"], "counts": rle["counts"].decode()}
            objects.append({"id": len(objects), "image_id": index, "segmentation": region, "iscrowd": 0})
            sentences, split = [{"sent": case.expression.text}], "val" if index % 4 == 3 else "train"
            ids = {"ref_id": len(references), "ann_id": objects[-1]["id"], "image_id": index}
            references.append({**ids, "split": split, "sentences": sentences})
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(references))
    (root / "refcoco" / "instances.json").write_text(json.dumps({"images": images, "annotations": objects}))


if len(sys.argv) == 4:
    (name, root, output), settings = sys.argv[1:], {"sam": "vit_b"}
else:
    name, root, output = builtin.VLM, "refer_seg", "my-head"
    settings = {"sam": {**builtin.load_head("lite").config.sam, "weights": str(builtin.SAM)}}
    write_miniature(Path(root), scenes=4)

cpu = not torch.cuda.is_available()
args = LensTrainingArguments(output, num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-4, use_cpu=cpu)
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(args.device)
adapter = LensAdapter.from_model(model, AutoProcessor.from_pretrained(name), fusion="lite", **settings)
train, validation = (Examples(read_refer(root, "refcoco", split)) for split in ("train", "val"))

trainer = LensTrainer(adapter, args, train_dataset=train, eval_dataset=validation)
trainer.train()
trainer.save_model()
print(f"gIoU on {len(validation)} sentences of the validation split: {trainer.evaluate()['eval_giou']:.3f}")
