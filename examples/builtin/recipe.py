"""What the training scripts share: model, processor, optimizer, and a loop that can be resumed."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lens_adapter.builtin.world import words

WORK = Path("build/builtin")  # checkpoints and logs of unfinished trainings
SHIPPED = Path(__file__).parents[2] / "lens_adapter" / "builtin"  # the four finished folders

IMAGE_SIZE = 128  # what the model's processor shrinks every picture to
PATCH_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE
IMAGE_TOKENS = GRID * GRID
WIDTH = 192
MEAN, STD = 0.56, 0.22  # of the scenes' pixels, roughly
WORD_SCALE = 0.3  # standard deviation of the word vectors
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
PAD, BOS, EOS, UNKNOWN, IMAGE = range(len(SPECIAL))
WORDS = SPECIAL + words()
WORD_ID = {word: index for index, word in enumerate(WORDS)}
# What the tokenizer reads of a text: letters in lower case, "and" for its signs, no possessive, every "?" a word of its
# own, ":" only where it stands alone, and no other punctuation.
NORMALIZED = (
    (r"[&+]", " and "),
    (r"['’]s\b", " "),
    (r"\?+", " ? "),
    (r"(?<=\S):|:(?=\S)|[\p{P}&&[^?:]]", " "),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% if message.role == 'assistant' %}<eos>{% else %} {% endif %}{% endfor %}"
)


def build_processor() -> LlavaProcessor:
    """One word, one token, however it is written; pictures squeezed to 128 x 128."""
    tokenizer = Tokenizer(models.WordLevel(WORD_ID, unk_token="<unk>"))
    rules = [normalizers.Replace(Regex(pattern), read) for pattern, read in NORMALIZED]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *rules])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", BOS)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size=square,
            do_center_crop=False,
            image_mean=[MEAN] * 3,
            image_std=[STD] * 3,
            resample=Image.Resampling.BICUBIC,
        ),
        tokenizer=wrapped,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def build_model() -> LlavaForConditionalGeneration:
    """A stock LLaVA, only small: 4-layer CLIP tower, 2-layer projector, 4-layer Llama, all 192 wide."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**shape, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=WIDTH)
    text = LlamaConfig(
        **shape,
        vocab_size=len(WORDS),
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    # Word vectors are random and stay as they are: tower and language model meet in them.
    vectors = torch.randn(len(WORDS), WIDTH, generator=torch.Generator().manual_seed(0)) * WORD_SCALE
    vectors[: len(SPECIAL)] = 0  # nothing to say about a place
    model.get_input_embeddings().weight.data.copy_(vectors)
    model.lm_head.weight.data.copy_(WORD_SCALE * vectors)
    return model


def load_start(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Weights to go on from; of words that came after they were made, `model` keeps its own vectors.

    Exits where the words of the folder's tokenizer, if it has one, are not the first of `WORDS`.
    """
    state = LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
    known = len(state["lm_head.weight"])
    listing = folder / "tokenizer.json"
    if listing.exists():
        vocabulary = Tokenizer.from_file(str(listing)).get_vocab(with_added_tokens=False)
        same = sorted(vocabulary, key=vocabulary.__getitem__) == WORDS[:known]
    else:
        same = known == len(WORDS)
    if not same:
        raise SystemExit(
            f"{folder} has {known} words that are not the first of {len(WORDS)}: new ones are for the end."
        )
    for name, own in model.state_dict().items():
        if own.shape != state[name].shape:  # rows of words
            state[name] = torch.cat([state[name], own[known:]])
    model.load_state_dict(state)


def encode(text: str) -> list[int]:
    """Words to ids; an unknown word is an error here, for training must not contain any."""
    return [WORD_ID[word] for word in text.split()]


def normalized(pictures: Tensor) -> Tensor:
    """uint8 (B, 128, 128, 3) -> (B, 3, 128, 128), as the processor hands pictures of that size to the model."""
    return ((pictures / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def random_filter(rng: np.random.Generator) -> Image.Resampling:
    """Pictures reach the model through all kinds of resizing; train on several."""
    options = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.HAMMING)
    return options[int(rng.integers(len(options)))]


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """(B, 3, 128, 128) -> (B, 64, 192): what the tower and the projector hand to the language model."""
    states = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    return model.model.multi_modal_projector(states[:, 1:])


def fingerprint(*modules: nn.Module) -> str:
    """Eight letters that change with the weights: what frozen parts said is never taken for what others say."""
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan, 2024) in fp32.

    Written here because torch's own iterates in bf16, which is tens of times slower than fp32 on common CPUs.
    Matrices of one shape are orthogonalized together.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape].append(p)
            for shape, params in same_shape.items():
                gradient = torch.stack([p.grad for p in params])
                buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                momentum = torch.stack(buffers).lerp_(gradient, 1 - group["momentum"])
                for buffer, new in zip(buffers, momentum, strict=True):
                    buffer.copy_(new)
                update = _orthogonalize(gradient.lerp(momentum, group["momentum"]))
                scale = 0.2 * math.sqrt(max(shape)) * group["lr"]
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-scale)


def _orthogonalize(x: Tensor) -> Tensor:
    """(N, a, b): five Newton-Schulz steps towards the nearest semi-orthogonal matrices."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.transpose(1, 2) if tall else x


def optimizers(named: list[tuple[str, nn.Parameter]], muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the networks, AdamW for embeddings, heads, norms and biases."""
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    rest = [p for n, p in named if not any(p is m for m in matrices)]
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=muon_lr), adam]


def flat_then_cosine(progress: float, flat_until: float, floor: float = 0.02) -> float:
    """Learning-rate factor: constant, then half a cosine down to `floor`."""
    if progress < flat_until:
        return 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - flat_until) / (1 - flat_until)))


class Session:
    """A training with a time budget, a progress bar, a log, and a checkpoint to go on from.

    Args:
        name: of the folder under build/builtin.
        minutes: budget; the learning-rate schedule is spread over it, and time spent before a restart counts.
        state: what is saved: anything with `state_dict` and `load_state_dict`.
        every: seconds between two checkpoints.
    """

    def __init__(self, name: str, minutes: float, state: dict[str, object], every: float = 120.0):
        self.folder = WORK / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.budget, self.state, self.every = 60 * minutes, state, every
        self.step, self.spent, self.notes = 0, 0.0, {}
        self.sums: dict[str, list[float]] = defaultdict(list)
        path = self.folder / "checkpoint.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True, map_location="cpu")
            self.step, self.spent, self.notes = saved["step"], saved["spent"], saved["notes"]
            for key, part in state.items():
                part.load_state_dict(saved[key])
            print(f"resumed at step {self.step}, {self.spent / 60:.1f} of {minutes:g} minutes")

    def save(self) -> None:
        """Write the checkpoint; a crash in the middle leaves the old one."""
        content = {key: part.state_dict() for key, part in self.state.items()}
        content |= {"step": self.step, "spent": self.spent, "notes": self.notes}
        torch.save(content, self.folder / "checkpoint.tmp")
        (self.folder / "checkpoint.tmp").replace(self.folder / "checkpoint.pt")

    def steps(self) -> Iterator[float]:
        """Yield the progress, 0 to 1, once per step, until the budget is spent."""
        bar = tqdm(
            total=round(self.budget / 60, 2),
            initial=round(self.spent / 60, 2),
            mininterval=5,
            bar_format="{l_bar}{bar}| {n:.1f} of {total:.1f} minutes",
        )
        last_save, clock = self.spent, time.monotonic()
        while self.spent < self.budget:
            yield self.spent / self.budget
            self.step += 1
            now = time.monotonic()
            self.spent, clock = self.spent + now - clock, now
            bar.update(round(self.spent / 60 - bar.n, 4))
            if self.spent - last_save > self.every:
                self.save()
                last_save = self.spent
        self.save()
        bar.close()

    def log(self, every: int = 50, **values: float) -> dict[str, float] | None:
        """Collect values; every so many steps print and store their means, and return them."""
        for key, value in values.items():
            self.sums[key].append(value)
        if (self.step + 1) % every:
            return None
        means = {key: float(np.mean(values)) for key, values in sorted(self.sums.items())}
        self.sums.clear()
        line = {
            "step": self.step + 1,
            "minutes": round(self.spent / 60, 2),
            **{k: round(v, 4) for k, v in means.items()},
        }
        tqdm.write(json.dumps(line))
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return means


class Drawn:
    """Arrays about the scenes of a split, made once and kept on disk: drawing costs more than learning from it.

    Args:
        name: of the folder under build/builtin.
        count: number of scenes.
        make: index of a scene -> {name: array}, of the same shapes and dtypes for every scene.
    """

    def __init__(self, name: str, count: int, make: Callable[[int], dict[str, np.ndarray]]):
        self.folder, self.count, self.make = WORK / name, count, make
        self.folder.mkdir(parents=True, exist_ok=True)
        kinds = {key: (array.shape, array.dtype) for key, array in make(0).items()} | {"ready": ((), np.dtype(bool))}
        self.arrays = {key: self._open(key, (count, *shape), dtype) for key, (shape, dtype) in kinds.items()}

    def _open(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        path = self.folder / f"{key}.npy"
        mode = "r+" if path.exists() else "w+"
        array = np.lib.format.open_memmap(path, mode, dtype, shape if mode == "w+" else None)
        if array.shape != shape or array.dtype != dtype:
            raise SystemExit(f"{path} holds {array.dtype} {array.shape}, expected {dtype} {shape}: delete the folder.")
        return array

    def draw_all(self, workers: int) -> None:
        """Make what is not there yet, in `workers` processes."""
        missing = [index for index in range(self.count) if not self.arrays["ready"][index]]
        loader = DataLoader(missing, batch_size=32, num_workers=workers, collate_fn=self._draw)
        for _ in tqdm(loader, desc=f"drawing {self.folder}", unit="batch", mininterval=10):
            pass

    def _draw(self, indices: list[int]) -> None:
        for index in indices:
            self[index]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not self.arrays["ready"][index]:
            for key, array in self.make(index).items():
                self.arrays[key][index] = array
            self.arrays["ready"][index] = True
        return {key: array[index] for key, array in self.arrays.items() if key != "ready"}


class Stream(Dataset):
    """Samples `make(index)` for index 0, 1, 2, ...: the same stream in every run."""

    def __init__(self, make: Callable[[int], object]):
        self.make = make

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> object:
        return self.make(index)


def moved(batch: object, device: str) -> object:
    """The same batch, its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [moved(value, device) for value in batch]
    return batch


def batches(
    make: Callable[[int], object],
    size: int,
    first_step: int,
    collate: Callable,
    workers: int,
    device: str = "cpu",
) -> Iterator:
    """Endless batches of `size` samples, on `device`, starting where step `first_step` would."""

    def indices() -> Iterator[list[int]]:
        start = first_step * size
        while True:
            yield list(range(start, start + size))
            start += size

    class Order:
        def __iter__(self) -> Iterator[list[int]]:
            return indices()

    ahead = 4 if workers else None  # batches that each process draws ahead
    loader = DataLoader(
        Stream(make), batch_sampler=Order(), collate_fn=collate, num_workers=workers, prefetch_factor=ahead
    )
    return (moved(batch, device) for batch in loader)


def arguments(description: str, minutes: float, bfloat16: bool = True) -> argparse.ArgumentParser:
    """The options that the scripts have in common, `--bfloat16` among them or not."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes, help="time budget; a restart goes on within it")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training process")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--start", type=Path, help="folder of weights to start from, for example the shipped ones")
    parser.add_argument("--first", type=int, default=0, help="first scene: others than those that made the weights")
    parser.add_argument("--rate", type=float, default=1.0, help="times the learning rates; less to go on from weights")
    parser.add_argument("--device", default="cpu", help="that multiplies: cpu, or cuda")
    if bfloat16:
        faster = "multiply in bfloat16; far faster on some processors"
        parser.add_argument("--bfloat16", action="store_true", help=faster)
    return parser


def multiplying(args: argparse.Namespace) -> torch.autocast:
    """Within it, matrices are multiplied as `--bfloat16` says; weights stay float32."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16)
