"""Image and prompt -> what the frozen model is called with."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps
from torch import Tensor
from transformers import BatchFeature

from lens_adapter.errors import InputError
from lens_adapter.vlm.threads import one_at_a_time

# Where processors keep the text that stands for the image.
IMAGE_TOKEN_ATTRIBUTES = ("image_placeholder_token", "boi_token", "image_token")

NO_LIMIT = 10**9  # tokens; tokenizers without a limit say something astronomical

# Processors that put the image before the text by themselves.
IMAGE_COMES_FIRST = ("Florence2Processor", "FuyuProcessor", "Pix2StructProcessor")

ImageInput = Image.Image | str | Path | np.ndarray | Tensor  # what `load_image` takes


def load_image(image: ImageInput) -> Image.Image:
    """Read an image as a viewer shows it: upright (EXIF orientation applied), 8 bits per channel, on white paper.

    Transparency is composited over white. 16-bit greyscale is scaled (65535 becomes 255). Of an animation, the frame
    that is current: the first, when read from a file. Color profiles are not applied.

    Args:
        image: a PIL image, a path, a numpy array (H, W, 3) uint8, or a torch tensor (3, H, W) uint8; all RGB.

    Returns:
        A PIL image of mode RGB. The one given is left as it was.

    Raises:
        InputError: the file is missing, no image, or damaged; the image is empty; a type, shape or dtype that is none
            of the above.
    """
    if isinstance(image, np.ndarray):
        _require_rgb(
            image, image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8, "numpy array (H, W, 3)"
        )
        return Image.fromarray(np.ascontiguousarray(image))
    if isinstance(image, Tensor):
        _require_rgb(
            image, image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.uint8, "torch tensor (3, H, W)"
        )
        return Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))
    if isinstance(image, Image.Image):
        return _as_shown(image, f"The {image.mode} image")
    if not isinstance(image, str | Path):
        raise InputError(
            "An image must be a PIL image, a path, a numpy array (H, W, 3) or a torch tensor (3, H, W) of dtype uint8; "
            f"got {type(image).__name__}."
        )
    if not Path(image).is_file():
        hint = " Download it first: URLs are not fetched." if str(image).startswith(("http://", "https://")) else ""
        raise InputError(f"There is no image file {str(image)!r}.{hint}")
    try:
        opened = Image.open(image)
    except Exception as error:  # as below
        raise InputError(f"The file {str(image)!r} cannot be read as an image: {error}") from error
    with opened:
        return _as_shown(opened, f"The file {str(image)!r}")


def _require_rgb(array: np.ndarray | Tensor, good: bool, expected: str) -> None:
    if not good or 0 in array.shape:
        raise InputError(
            f"Expected a {expected} of RGB values, dtype uint8, with at least one pixel; "
            f"got shape {tuple(array.shape)} and dtype {array.dtype}."
        )


def _as_shown(image: Image.Image, name: str) -> Image.Image:
    """Decode, turn upright and convert to RGB."""
    if 0 in image.size:
        raise InputError(f"{name} is empty: {image.width} x {image.height} pixels.")
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels, whose white is not defined. Convert it to 8 bits first.")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return _from_16_bits(image, name)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # a decoder meets damage with whatever error it runs into first
        raise InputError(f"{name} cannot be decoded; it may be damaged or cut off: {error}") from error


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(image).astype(np.float64)
    if levels.min() < 0 or levels.max() > 65535:
        raise InputError(
            f"{name} has 32-bit pixels from {levels.min():.0f} to {levels.max():.0f}, whose white is not defined "
            "(16-bit greyscale: 0 to 65535). Convert it to 8 bits first."
        )
    return Image.fromarray((levels / 257).round().astype(np.uint8)).convert("RGB")


@one_at_a_time
def text_inputs(processor: Any, prompt: str, template: str) -> BatchFeature:
    """As `build_inputs`, of one prompt without an image."""
    _check_prompt(prompt, processor)
    question = template.replace("{prompt}", prompt)
    content: Any
    if getattr(processor, "chat_template", None):
        owner, content = processor, [{"type": "text", "text": question}]
    elif processor.tokenizer.chat_template:
        owner, content = processor.tokenizer, question
    else:
        return processor.tokenizer(question, return_tensors="pt")
    return owner.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@one_at_a_time
def build_inputs(
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    template: str,
    max_length: int | None = None,
) -> BatchFeature:
    """One image and one prompt per row, asked the way the model was taught to be asked.

    Args:
        processor: the model's processor. Its chat template (or its tokenizer's) frames the question; without one, the
            text is the image token, a new line and the question.
        images: B RGB images, as `load_image` returns them.
        prompts: B texts.
        template: the question; `{prompt}` in it is replaced by the prompt.
        max_length: tokens that the model has positions for, if that is known.

    Returns:
        The processor's tensors, padded on the left: `input_ids` (B, T), `attention_mask` (B, T), `pixel_values`, ...

    Raises:
        InputError: no processor; a prompt that is empty, no text, too long, or holds a special token; an image that
            the processor refuses.
    """
    if len(images) != len(prompts) or not len(prompts):
        raise InputError(
            f"Expected one prompt per image, at least one; got {len(images)} images, {len(prompts)} prompts."
        )
    texts, specials = _asked_texts(processor, prompts, template)
    # Not every processor gives by itself all that it says the model takes.
    names = getattr(processor, "model_input_names", ())
    asked = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in names else {}
    asked = _taken(processor, {"padding_side": "left", **asked, **specials})
    try:
        inputs = _process(
            processor,
            [_unambiguous(image) for image in images],
            text=texts,
            padding=len(texts) > 1 or processor.tokenizer.pad_token is not None,
            return_tensors="pt",
            **asked,
        )
    except (ValueError, RuntimeError, ZeroDivisionError, MemoryError) as error:
        raise InputError(_refusal(processor, images, error)) from error
    ids = inputs.get("input_ids", inputs.get("decoder_input_ids", ()))
    if len(ids) != len(texts):
        raise InputError(
            f"{type(processor).__name__} makes {len(ids)} texts of {len(texts)}: it asks questions of "
            "its own, and prompts never reach the model. Use another processor class over the same image processor "
            "and tokenizer."
        )
    require_length(processor, prompts, ids.shape[1], max_length)
    return inputs


@one_at_a_time
def tokenize(processor: Any, prompts: Sequence[str], template: str) -> list[list[int]]:
    """The prompts as `build_inputs` asks them, in tokens, before the processor puts an image in.

    Raises:
        InputError: as `build_inputs` does for texts.
    """
    texts, specials = _asked_texts(processor, prompts, template)
    return [processor.tokenizer(text, **specials)["input_ids"] for text in texts]


def require_length(processor: Any, prompts: Sequence[str], length: int, max_length: int | None) -> None:
    """Refuse prompts that make more tokens, `length` of them with image and template, than the model takes.

    Raises:
        InputError: says which prompt.
    """
    limit = min(NO_LIMIT, processor.tokenizer.model_max_length, max_length or NO_LIMIT)
    if length > limit:
        row = max(range(len(prompts)), key=lambda index: len(prompts[index]))
        raise InputError(
            f"A prompt is too long: image, template and prompt together make {length} tokens, and the model takes "
            f"{limit}. Shorten it; it starts with {prompts[row][:60]!r}."
        )


def _asked_texts(processor: Any, prompts: Sequence[str], template: str) -> tuple[list[str], dict[str, bool]]:
    """The whole text of each prompt, and whether special tokens are to be added to them where that is known."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "image_processor"):
        raise InputError(
            "Images and prompts need the model's processor (image processor and tokenizer in one); got "
            f"{type(processor).__name__}. Pass AutoProcessor.from_pretrained(the model's name or folder)."
        )
    for prompt in prompts:
        _check_prompt(prompt, processor)
    texts = [_chat_text(processor, template.replace("{prompt}", prompt)) for prompt in prompts]
    # A template that writes the sequence's first token itself does not want the tokenizer's as well.
    starts_itself = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
    return texts, {} if _places_image(processor) else {"add_special_tokens": not starts_itself}


def _taken(processor: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that the processor takes; a few, in transformers 4, leave the rest to their tokenizer."""
    parameters = inspect.signature(processor).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _check_prompt(prompt: Any, processor: Any) -> None:
    if not isinstance(prompt, str):
        raise InputError(f"A prompt must be a text (str); got {type(prompt).__name__}.")
    if not prompt.strip():
        raise InputError(f"A prompt must say what to find; got the empty text {prompt!r}.")
    added = processor.tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(_image_tokens(processor))
    # Single letters serve some tokenizers as padding, and are no harm in a text.
    if found := sorted(token for token in special if len(token) > 1 and token in prompt):
        raise InputError(
            f"A prompt must not hold the model's special tokens, which would be read as commands or images; "
            f"got {', '.join(found)} in {prompt!r}. Take them out: the image is put in for you."
        )


def _process(processor: Any, images: Sequence[Any], **options: Any) -> BatchFeature:
    """Call a processor with one image per text. Most want the images of each text in a list, some want them bare."""
    try:
        return processor(images=[[image] for image in images], **options)
    except ValueError as error:
        try:
            return processor(images=list(images), **options)
        except (ValueError, TypeError):
            raise error from None


def _places_image(processor: Any) -> bool:
    """Whether the processor puts the image before the text, and the sequence's first token there, by itself."""
    return any(kind.__name__ in IMAGE_COMES_FIRST for kind in type(processor).__mro__)


def _image_tokens(processor: Any) -> list[str]:
    """The texts that may stand for the image: which of them does, if there are two, shows in the chat template."""
    names = [getattr(processor, name, None) for name in IMAGE_TOKEN_ATTRIBUTES]
    return list(dict.fromkeys(str(name) for name in names if name))


def _chat_text(processor: Any, question: str) -> str:
    """The user's turn, with image and question, up to where the answer starts."""
    image_tokens = _image_tokens(processor)
    tokenizer = processor.tokenizer
    if _places_image(processor):
        return question
    if not image_tokens and not getattr(processor, "chat_template", None):
        raise InputError(
            f"{type(processor).__name__} names no image token (`image_token`), so no text can hold an image. "
            "Use the processor of an image-text-to-text model."
        )
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    plain = f"{image_tokens[0] if image_tokens else ''}\n{question}"
    if getattr(processor, "chat_template", None):
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    elif getattr(tokenizer, "chat_template", None):
        text = _tokenizer_chat_text(tokenizer, parts, image_tokens) or _tokenizer_chat_text(
            tokenizer, plain, image_tokens
        )
    else:
        text = plain
    # A processor without an image token replaces none: its template writes as many as the image has.
    if text is None or (image_tokens and sum(map(text.count, image_tokens)) != 1):
        raise InputError(
            f"The chat template must put the image token {' or '.join(map(repr, image_tokens))} once into the text, "
            f"and the prompt template must not hold it; got {text!r}."
        )
    return text


def _tokenizer_chat_text(tokenizer: Any, content: Any, image_tokens: Sequence[str]) -> str | None:
    """None: this template was not written for such content (many know plain text alone)."""
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    except (TypeError, TemplateError):
        return None
    return text if any(token in text for token in image_tokens) else None


def _unambiguous(image: Image.Image) -> Any:
    """transformers 4 takes a picture 1 or 3 pixels high for one with channels first; then give it just that."""
    return np.array(image).transpose(2, 0, 1) if image.height in (1, 3) else image  # (3, H, W)


def _refusal(processor: Any, images: Sequence[Image.Image], error: Exception) -> str:
    """Which image it was, and why."""
    for image in images:
        try:
            processor.image_processor(images=[_unambiguous(image)], return_tensors="pt")
        except (ValueError, RuntimeError, ZeroDivisionError, MemoryError) as reason:
            return (
                f"The processor refuses the image of {image.width} x {image.height} pixels: {reason}. "
                "Crop or pad it to a more usual shape."
            )
    sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
    return f"The processor refuses this batch (images of {sizes} pixels): {error}"


@one_at_a_time
def unread_words(processor: Any, prompts: Collection[str]) -> list[str]:
    """Words that the tokenizer has no token for. Most tokenizers spell such words out, and have none."""
    tokenizer = processor.tokenizer
    if tokenizer.unk_token_id is None:
        return []
    words = dict.fromkeys(word for prompt in prompts for word in prompt.split())
    return [word for word in words if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]]
