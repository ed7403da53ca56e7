"""Train a LENS head for a model of the Hub on a folder of labelled images, and write it to another folder.

    python examples/train_on_a_folder.py llava-hf/llava-1.5-7b-hf my-labelled-images my-head

The same from the command line, or with several processes (`accelerate launch -m lens_adapter train ...`):

    lens-adapter train --model llava-hf/llava-1.5-7b-hf --data my-labelled-images -o my-head --head fusion=lite
"""

import sys

from transformers import AutoModelForImageTextToText, AutoProcessor

from lens_adapter import LensAdapter
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.training import LensTrainer, LensTrainingArguments

name, folder, output = sys.argv[1:]
args = LensTrainingArguments(output, num_train_epochs=3, per_device_train_batch_size=4, learning_rate=1e-4)

model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(args.device)
adapter = LensAdapter.from_model(model, AutoProcessor.from_pretrained(name), fusion="lite")

trainer = LensTrainer(adapter, args, train_dataset=Examples(read_folder(folder)))
trainer.train()
trainer.save_model()

sample = trainer.train_dataset[0]
adapter.segment(sample.image, sample.prompt).save(f"{output}/first-sample.png")
