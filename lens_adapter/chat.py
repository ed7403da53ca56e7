"""Chat that points: the frozen model's own words, and masks for the things they name.

`LensAdapter.chat`, `.ground` and `.route` are these functions, given its base and its `segment`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from lens_adapter.errors import InputError, brief
from lens_adapter.output import LensOutput
from lens_adapter.vlm.base import FrozenBase
from lens_adapter.vlm.images import load_image
from lens_adapter.vlm.inputs import (
    apply_template,
    asked_tokens,
    check_letters,
    check_text,
    require_length,
    text_inputs,
)
from lens_adapter.vlm.threads import one_at_a_time

Messages = str | Sequence[dict[str, Any]]
Wanted = str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | None
Span = tuple[int, int]  # text[start:end]
Segment = Callable[[Image, list[str]], LensOutput]  # one picture and its prompts

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_RUN = re.compile(rf"{_WORD.pattern}(?: {_WORD.pattern})*")  # words between punctuation
_ARTICLES = frozenset(("the", "a", "an"))
_IMAGES = ("image", "image_url")  # types of a part that stand for the one image, whatever else they hold
_LONGEST_NAME = 6  # words of a text that is one name as a whole
# Words that no noun phrase runs across, and what a picture itself is called.
_STOPS = frozenset(
    _WORD.findall(
        """
        is are was were be been being am isn't aren't has have had having do does did can could will would may might
        must should shall appears appear seems seem shows show contains contain includes include features feature
        depicts sits sit stands stand lies lie looks look wears wear holds hold
        of in on at to from by with without for near under over above below behind between beside into onto inside
        outside through across along around against toward towards next
        and or but while which that who whom whose where when as than because if so there here
        it its it's he she they them their his her this these those i you we
        image picture photo photograph scene yes no not none nothing nowhere
        """
    )
)
# Words that say how many, of what color, how large, where or how much: alone, or among themselves, they name no thing.
_QUALITIES = frozenset(
    _WORD.findall(
        """
        zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million dozen hundreds
        thousands millions dozens once twice thrice times single double triple half quarter
        first second third fourth fifth sixth seventh eighth ninth tenth last next
        many much more most less least few fewer some several any all every each both either neither other others
        another same different only lot lots bit couple pair number amount total variety kind type sort rest part
        about approximately around nearly almost roughly exactly just at least over under up quite too so very mostly
        mainly partly slightly completely really
        red yellow green blue purple pink brown black white gray grey beige tan teal cyan magenta turquoise maroon navy
        indigo crimson scarlet orange violet lavender gold golden silver cream
        reddish yellowish greenish bluish purplish pinkish brownish blackish whitish grayish greyish orangish
        light dark bright pale deep dull vivid colored coloured colorful colourful multicolored multicoloured color
        colour colors colours plain striped spotted dotted checkered transparent
        big bigger biggest large larger largest small smaller smallest little tiny huge medium medium-sized tall taller
        tallest short shorter shortest long longer longest high higher highest low lower lowest wide wider widest narrow
        thick thin deep old older oldest young younger youngest new newer newest size sized shape
        left leftmost right rightmost top topmost bottom bottommost middle center centre upper front back rear
        foreground background near nearer nearest far farther farthest close closer closest side
        good bad nice open closed empty full true false correct
        """
    )
)
# Among them those that are things too, with an article: "an orange".
_ALSO_THINGS = frozenset(("orange", "violet", "lavender", "gold", "silver", "cream"))


@dataclass(frozen=True)
class Phrase:
    """A name in a text and what it names.

    Attributes:
        text: what was segmented.
        span: where it stands, `grounded.text[start:end]` in characters; None: it was asked for and the text lacks it.
        row: of its mask in `grounded.output`.
        mask: bool (H, W), at the image's own resolution.
        score: in [0, 1], the decoder's own estimate of the mask's quality.
    """

    text: str
    span: Span | None
    row: int
    mask: Tensor = field(repr=False)
    score: float


@dataclass(frozen=True)
class GroundedText:
    """A text about an image and masks of what it names.

    Attributes:
        text: what the model said, without special tokens; or the text that was to be grounded.
        token_ids: long (T,), what `generate` made of it, special tokens included; None for a text of the user's.
        phrases: in the order of the text, or in which they were asked for; a name that stands in several places is
            several phrases with one mask.
        output: the masks, scores, keypoints and heatmaps of all different phrases.
        unknown_words: of what the model was asked, the words that it has no token for: an answer to them means little.
            Those of the phrases are in `output.unknown_words`.
    """

    text: str
    token_ids: Tensor | None
    phrases: list[Phrase]
    output: LensOutput
    unknown_words: list[str] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text with its names in the colors of their masks, the picture, and a table."""
        from lens_adapter.pictures.notebook import grounded_html

        spans = [(phrase.span, phrase.row) for phrase in self.phrases]
        return grounded_html(self.text, spans, self.output._repr_html_())


@dataclass(frozen=True)
class Route:
    """What the model takes a request for.

    Attributes:
        decision: "mask" where the probability is above 0.5, else "answer".
        probability: in [0, 1], of "yes, a mask is wanted" against "no".
    """

    decision: Literal["mask", "answer"]
    probability: float


def chat(
    base: FrozenBase,
    segment: Segment,
    image: Any,
    messages: Messages,
    phrases: Wanted = None,
    **generate_kwargs: Any,
) -> GroundedText:
    """See `LensAdapter.chat`."""
    picture = load_image(image)
    inputs, asked_texts = _conversation_inputs(base, picture, messages)
    unknown = [word for words in base.unknown_words(asked_texts) for word in words]
    made = base.generate(inputs, **generate_kwargs)
    sequences = made if isinstance(made, Tensor) else made.sequences  # (1, T)
    if len(sequences) != 1:
        raise InputError(f"chat grounds one answer; got {len(sequences)}. Leave num_return_sequences at 1.")
    asked, tokens = asked_tokens(inputs)[0], sequences[0]
    if torch.equal(tokens[: len(asked)], asked):  # encoder-decoders return the answer alone
        tokens = tokens[len(asked) :]
    text = base.require_processor().tokenizer.decode(tokens, skip_special_tokens=True)
    return replace(_grounded(segment, picture, text, phrases, tokens), unknown_words=list(dict.fromkeys(unknown)))


def ground(base: FrozenBase, segment: Segment, image: Any, text: str, phrases: Wanted = None) -> GroundedText:
    """See `LensAdapter.ground`."""
    if not isinstance(text, str):
        raise InputError(f"The text to be grounded must be a str; got {type(text).__name__}.")
    check_letters(text)
    base.require_processor()  # needed even where this text names nothing
    return _grounded(segment, load_image(image), text, phrases, token_ids=None)


def route(base: FrozenBase, text: str, image: Any = None, question: str | None = None) -> Route:
    """See `LensAdapter.route`."""
    question = base.config.routing_question if question is None else question
    if not isinstance(question, str) or "{prompt}" not in question:
        raise InputError(f"question must be a text with {{prompt}} where the request goes; got {brief(question)}.")
    processor = base.require_processor()
    base.yes_and_no_tokens()  # refused before anything is built
    check_text(question, processor)
    if image is None:
        inputs = text_inputs(processor, text, question, base.max_length)
    else:
        inputs = base.build_inputs([load_image(image)], [text], template=question)
    base.unknown_words([text])  # which warns
    probability = float(torch.sigmoid(base.yes_over_no_of(inputs)[0]))
    return Route("mask" if probability > 0.5 else "answer", probability)


def find_phrases(text: str, wanted: Wanted = None) -> Iterator[tuple[str, Span | None]]:
    """Names in a text and where they stand.

    Args:
        text: in any language where `wanted` says what is looked for; in English where it does not.
        wanted: names (found as whole words in either case, wherever they stand; with None as their place where they
            stand nowhere), regular expressions (`re.compile`, found wherever they match), or a list of both. None: what
            starts with "the", "a" or "an" and goes on up to punctuation, the next article or a word of a short list of
            verbs, prepositions, conjunctions and pronouns; and a text that is nothing but a few other words
            ("Large red car.") as a whole.

    The last is a rule of thumb, no grammar: it does not see names without an article ("two dogs"), keeps verbs that are
    not on its list ("a dog sitting"), cuts names at prepositions ("the man" of "the man in the hat"), and takes
    abstract nouns for things ("the weather"). Numbers, colors, sizes and places alone name nothing: "four", "pink",
    "the left", but "the left one"; of "orange" and the like, which are both, only "an orange" is a thing.

    Examples:
        >>> list(find_phrases("A dog sits under the old table."))
        [('A dog', (0, 5)), ('the old table', (17, 30))]
        >>> list(find_phrases("Four."))
        []
        >>> list(find_phrases("Two dogs and a cup.", ["dogs", "a cat", re.compile("a [a-z]+")]))
        [('dogs', (4, 8)), ('a cat', None), ('a cup', (13, 18))]
    """
    if wanted is None:
        yield from ((text[start:end], (start, end)) for start, end in _noun_phrases(text))
        return
    if not isinstance(wanted, str | re.Pattern | Sequence):
        raise InputError(f"phrases must be a name, a regular expression or a list of them; got {brief(wanted)}.")
    for name in [wanted] if isinstance(wanted, str | re.Pattern) else wanted:
        if isinstance(name, re.Pattern):
            yield from ((match[0], match.span()) for match in name.finditer(text) if match[0].strip())
        elif not isinstance(name, str) or not name.strip():
            raise InputError(
                f"A phrase must be a text that names something or a regular expression; got {brief(name)}."
            )
        else:
            found = re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
            places: list[Span | None] = [match.span() for match in found]
            yield from ((name, span) for span in places or [None])


def _noun_phrases(text: str) -> Iterator[Span]:
    runs = [list(_WORD.finditer(text, *run.span())) for run in _RUN.finditer(text)]
    if len(runs) == 1 and _is_name([word[0].lower() for word in runs[0]]):
        yield runs[0][0].start(), runs[0][-1].end()
    for run in runs:
        words = [word[0].lower() for word in run]
        breaks = [k for k, word in enumerate(words) if word in _ARTICLES or word in _STOPS]
        for first, after in pairwise([*breaks, len(words)]):
            if words[first] in _ARTICLES and _names_a_thing(words[first + 1 : after], article=True):
                yield run[first].start(), run[after - 1].end()


def _is_name(words: list[str]) -> bool:
    """Whether the only words of a text are a name without an article."""
    letters = all(not any(letter.isdigit() for letter in word) for word in words)
    short = len(words) <= _LONGEST_NAME and not {*words} & (_ARTICLES | _STOPS)
    return letters and short and _names_a_thing(words, article=False)


def _names_a_thing(words: list[str], article: bool) -> bool:
    """Whether a word of a phrase, its article left out, is more than a number, a color, a size or a place."""
    if article and words[1:] and words[-1] in ("one", "ones"):
        return True  # "the red one"
    parts = [part for word in words for part in ([word] if word in _QUALITIES else word.split("-"))]
    things = [part for part in parts if part not in _QUALITIES and not part[0].isdigit()]
    return bool(things) or (article and bool(words) and words[-1] in _ALSO_THINGS)


def _grounded(segment: Segment, picture: Image, text: str, wanted: Wanted, token_ids: Tensor | None) -> GroundedText:
    found = list(find_phrases(text, wanted))
    prompts: dict[str, str] = {}
    for name, _ in found:
        prompts.setdefault(name.casefold(), name)  # "The dog" and "the dog" are one
    output = segment(picture, list(prompts.values())) if prompts else _nothing(picture)
    rows = {key: row for row, key in enumerate(prompts)}
    phrases = [
        Phrase(name, span, row := rows[name.casefold()], output.masks[row], float(output.scores[row]))
        for name, span in found
    ]
    return GroundedText(text, token_ids, phrases, output)


def _nothing(picture: Image) -> LensOutput:
    size = (picture.height, picture.width)
    masks = torch.zeros(0, *size, dtype=torch.bool)
    return LensOutput([], size, masks, torch.zeros(0), [], [], torch.zeros(0, 1, 1), image=picture)


@one_at_a_time
def _conversation_inputs(base: FrozenBase, picture: Image, messages: Messages) -> tuple[Any, list[str]]:
    """What the base is called with, and the user's texts in it.

    A list goes through the base's own chat template, as its user would have it.
    """
    processor = base.require_processor()
    if isinstance(messages, str):
        return base.build_inputs([picture], [messages], template="{prompt}"), [messages]
    if not getattr(processor, "chat_template", None):
        raise InputError(
            f"This {type(processor).__name__} has no chat template, so there is no telling how it writes a "
            "conversation. Pass one question as a text, or set processor.chat_template."
        )
    turns = _with_image(messages, picture)
    texts = [text for turn in turns for text in (turn["role"], *_texts(turn["content"]))]
    for text in texts:
        check_text(text, processor)
    inputs = apply_template(
        processor,
        turns,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    require_length(processor, texts, asked_tokens(inputs).shape[1], base.max_length)
    return inputs, [text for turn in turns if turn["role"] == "user" for text in _texts(turn["content"])]


def _with_image(messages: Sequence[dict[str, Any]], picture: Image) -> list[dict[str, Any]]:
    """The messages with the picture where their image part is, or first in the first turn of the user."""
    here = {"type": "image", "image": picture}
    try:
        turns = [{"role": _role(turn), "content": _parts(turn["content"], here)} for turn in messages]
        images = sum(part is here for turn in turns for part in turn["content"])
        if not images:
            asked = next(turn for turn in turns if turn["role"] == "user")
            asked["content"] = [here, *_parts_of_text(asked["content"])]
    except (TypeError, KeyError, AttributeError, StopIteration) as error:
        raise InputError(
            'messages must be a question or a list of turns {"role": "user", "content": "..." or a list of parts}, one '
            f"of them the user's; got {reprlib.repr(messages)}."
        ) from error
    if images > 1:
        raise InputError(f"chat is about one image; the messages have {images} image parts.")
    return turns


def _role(turn: dict[str, Any]) -> str:
    """Who speaks. What else a turn holds would go into the text unread, or be left out unsaid.

    Raises:
        InputError: the role is no text, or there is more than role and content.
        KeyError, TypeError: this is no turn.
    """
    more = [key for key, value in turn.items() if key not in ("role", "content") and value is not None]
    if more or not isinstance(turn["role"], str):
        raise InputError(
            f"A turn of a conversation has a role, which is a text, and a content; got the role {brief(turn['role'])}"
            f"{f' and also {brief(more)}. Leave that out' if more else ''}."
        )
    return turn["role"]


def _parts(content: Any, here: dict[str, Any]) -> Any:
    """A turn's content with the picture in its slot; of a part with a text, the text alone.

    Raises:
        InputError: a part that is neither a text nor an image.
        KeyError, TypeError: no content.
    """
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part["type"] in _IMAGES:
            parts.append(here)
        elif part["type"] == "text" and isinstance(part["text"], str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise InputError(
                'A part of a message must be {"type": "text", "text": "..."} or the place of the one image, '
                f'{{"type": "image"}} or "image_url"; got a part of the type {brief(part["type"])}. Leave it out.'
            )
    return parts


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _parts_of_text(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
