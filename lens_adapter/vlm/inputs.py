"""Image and prompt -> what the frozen model is called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature

from lens_adapter.errors import InputError, brief
from lens_adapter.vlm.threads import one_at_a_time

# Where processors keep the text that stands for the image.
IMAGE_TOKEN_ATTRIBUTES = ("image_placeholder_token", "boi_token", "image_token")

LONGEST_TEXT = 10_000  # letters of a prompt, a question, or one text of a conversation; about three pages
NO_LIMIT = 10**9  # tokens; tokenizers without a limit say something astronomical

# What some processors cannot do without, and older files do not hold.
_SETTINGS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")

_AS_TEXT: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}

# Processors that put the image before the text by themselves.
IMAGE_COMES_FIRST = ("Florence2Processor", "FuyuProcessor", "Pix2StructProcessor")


@one_at_a_time
def text_inputs(processor: Any, prompt: str, template: str, max_length: int | None = None) -> BatchFeature:
    """As `build_inputs`, of one prompt without an image."""
    inputs = _text_inputs(processor, prompt, template)
    require_length(processor, [prompt], asked_tokens(inputs).shape[1], max_length)
    return inputs


def _text_inputs(processor: Any, prompt: str, template: str) -> BatchFeature:
    _check_prompt(prompt, processor)
    question = _question(template, prompt)
    owner = _template_owner(processor)
    if owner is None:
        return processor.tokenizer(question, return_tensors="pt")
    parts = [{"type": "text", "text": question}]
    content, text = _content_it_takes(owner, question, [parts, question] if owner is processor else [question, parts])
    _require_question(question, text)
    if owner is processor and isinstance(content, str):  # transformers 4 makes no tokens of such a turn
        bos = processor.tokenizer.bos_token
        starts_itself = bool(bos) and text.startswith(bos)
        return processor.tokenizer(text, return_tensors="pt", add_special_tokens=not starts_itself)
    return apply_template(
        owner,
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def apply_template(owner: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """What `owner.apply_chat_template` makes of a conversation, whatever its template may raise.

    Args:
        owner: processor or tokenizer with a chat template.
        turns: the conversation.
        options: as for `apply_chat_template`.

    Raises:
        InputError: the template was not written for such turns, is malformed, or is one of several without a default.
    """
    try:
        return owner.apply_chat_template(turns, **options)
    except Exception as error:  # a template is a program of its author's, and raises what it likes
        advice = "Set its chat_template to one that takes a user's turn of an image and a text."
        if isinstance(owner.chat_template, dict) and "default" not in owner.chat_template:
            advice = (
                f"It has {sorted(owner.chat_template)} and none called 'default': set chat_template to one of them."
            )
        raise InputError(
            f"The chat template of {type(owner).__name__} cannot be used. {type(error).__name__}: {error}. {advice}"
        ) from error


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
        InputError: no processor, or one that is not whole; a chat template that cannot be used; a prompt that is empty,
            no text, too long, or holds a special token; an image that the processor refuses.
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
    except Exception as error:  # a processor meets what it cannot use with whatever error it runs into first
        raise InputError(_refusal(processor, images, error)) from error
    ids = asked_tokens(inputs)
    if len(ids) != len(texts):
        raise InputError(
            f"{type(processor).__name__} makes {len(ids)} texts of {len(texts)}: it asks questions of "
            "its own, and prompts never reach the model. Use another processor class over the same image processor "
            "and tokenizer."
        )
    require_length(processor, prompts, ids.shape[1], max_length)
    return inputs


def asked_tokens(inputs: Mapping[str, Any]) -> Any:
    """(B, T): the tokens of the texts, wherever an architecture has them; () where it has none."""
    return inputs.get("input_ids", inputs.get("decoder_input_ids", ()))


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
    texts = [_chat_text(processor, _question(template, prompt)) for prompt in prompts]
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
    check_text(prompt, processor)


def check_text(text: str, processor: Any) -> None:
    """Refuse what a tokenizer cannot read, or would read as something else than words, and what is too long to be read.

    Raises:
        InputError: the text has more than `LONGEST_TEXT` letters, holds half a letter (a lone surrogate), or one of the
            model's special tokens.
    """
    check_letters(text)
    added = processor.tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(_image_tokens(processor))
    # Single letters serve some tokenizers as padding, and are no harm in a text.
    if found := sorted(token for token in special if len(token) > 1 and token in text):
        raise InputError(
            f"A prompt must not hold the model's special tokens, which would be read as commands or images; "
            f"got {', '.join(found)} in {brief(text)}. Take them out: the image is put in for you."
        )


def check_letters(text: str) -> None:
    """Refuse a text of more than `LONGEST_TEXT` letters, or with half a letter in it.

    Raises:
        InputError: says which, and where.
    """
    if len(text) > LONGEST_TEXT:
        raise InputError(
            f"A text is too long: a prompt, a question or a part of a conversation may have {LONGEST_TEXT} letters; "
            f"got {len(text)}. Shorten it; it starts with {text[:60]!r}."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"A prompt must be whole letters, and {brief(text)} holds a half one at {error.start} (a lone surrogate, "
            'as badly decoded bytes leave it). Decode it anew: data.decode("utf-8", "replace").'
        ) from error


def _question(template: str, prompt: str) -> str:
    check_letters(template)
    return template.replace("{prompt}", prompt)


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
    if _places_image(processor):
        return question
    if not image_tokens and not getattr(processor, "chat_template", None):
        raise InputError(
            f"{type(processor).__name__} names no image token (`image_token`), so no text can hold an image. "
            "Use the processor of an image-text-to-text model."
        )
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    text = f"{image_tokens[0] if image_tokens else ''}\n{question}"
    if owner := _template_owner(processor):
        _, text = _content_it_takes(owner, question, [parts, text], image_tokens)
    # A processor without an image token replaces none: its template writes as many as the image has.
    if image_tokens and sum(map(text.count, image_tokens)) != 1:
        raise InputError(
            f"The chat template must put the image token {' or '.join(map(repr, image_tokens))} once into the text, "
            f"and the prompt template must not hold it; got {text!r}."
        )
    _require_question(question, text)
    return text


def _require_question(question: str, text: str) -> None:
    if question.strip() not in text:
        raise InputError(f"The chat template must put the question {question!r} into the text; got {text!r}.")


def _template_owner(processor: Any) -> Any:
    """Whose chat template frames a question: the processor's or its tokenizer's; None: there is none."""
    owners = (processor, processor.tokenizer)
    return next((owner for owner in owners if getattr(owner, "chat_template", None)), None)


def _content_it_takes(
    owner: Any, question: str, ways: Sequence[Any], image_tokens: Sequence[str] = ()
) -> tuple[Any, str]:
    """The first of several contents of a user's turn that a template was written for, and the text it makes of it.

    Many templates know plain text alone. Where none of the contents comes out whole, it is the first that gives a text.

    Raises:
        InputError: the template raises whatever it is given; says why.
    """
    made: list[tuple[Any, str]] = []
    refusals = []
    for content in ways:
        try:
            text = apply_template(owner, [{"role": "user", "content": content}], **_AS_TEXT)
        except InputError as error:
            refusals.append(error)
            continue
        made.append((content, text))
        # A list that was written out as Python writes it was meant to be a text.
        whole = question.strip() in text and "'type': 'text'" not in text.replace(question, "")
        if whole and (not image_tokens or any(token in text for token in image_tokens)):
            return made[-1]
    if not made:
        raise refusals[0]
    return made[0]


def _unambiguous(image: Image.Image) -> Any:
    """transformers 4 takes a picture 1 or 3 pixels high for one with channels first; then give it just that."""
    return np.array(image).transpose(2, 0, 1) if image.height in (1, 3) else image  # (3, H, W)


def _refusal(processor: Any, images: Sequence[Image.Image], error: Exception) -> str:
    """Which image it was, and why."""
    for image in images:
        try:
            processor.image_processor(images=[_unambiguous(image)], return_tensors="pt")
        except Exception as reason:
            return (
                f"The processor refuses the image of {image.width} x {image.height} pixels: {reason}. "
                "Crop or pad it to a more usual shape."
            )
    sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
    said = f"{type(processor).__name__} refuses this batch (images of {sizes} pixels): {type(error).__name__}: {error}."
    unset = [name for name in _SETTINGS if getattr(processor, name, 0) is None]
    advice = " Set it to the model's, as in processor.patch_size = model.config.vision_config.patch_size."
    return said + (f" Its {' and '.join(unset)} is None: expected a value.{advice}" if unset else "")
