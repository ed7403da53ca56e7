"""The 64 things of the built-in world: what they are called, what they are, and what color they have.

A question about them has three answers: yes, no, and "people would disagree". What people would disagree about (is a
skateboard a vehicle?) is `unclear`: nothing that hangs on it is ever said or asked.
"""

from __future__ import annotations

from dataclasses import dataclass

COLORS = {  # name -> RGB of a thing painted in it
    "red": (214, 38, 40),
    "orange": (244, 128, 24),
    "yellow": (250, 204, 32),
    "green": (52, 160, 66),
    "blue": (40, 104, 216),
    "purple": (138, 66, 196),
    "pink": (244, 120, 172),
    "brown": (132, 84, 52),
    "black": (44, 44, 50),
    "white": (240, 240, 242),
    "gray": (140, 142, 146),
}
COLORFUL = "colorful"  # the color of what has many


@dataclass(frozen=True)
class Noun:
    """What something is called.

    Attributes:
        one, many: "piece of clothing", "pieces of clothing".
        loose: as people also say when nothing is counted, e.g. "clothes"; empty: as `one` or `many`.
    """

    one: str
    many: str
    loose: str = ""


@dataclass(frozen=True)
class Thing:
    """One class.

    Attributes:
        name: one word.
        emoji: the character whose picture it is.
        category: the narrowest, a key of `CATEGORIES`.
        color: its natural color.
        also: colors that people might name as well.
        paints: every color that it comes in, `color` among them; one only: it is never repainted.
        mirrors: its mirror image is as good.
        noun: how it is called.
    """

    name: str
    emoji: str
    category: str
    color: str
    also: tuple[str, ...]
    paints: tuple[str, ...]
    mirrors: bool
    noun: Noun

    @property
    def is_painted(self) -> bool:
        return len(self.paints) > 1


@dataclass(frozen=True)
class Members:
    """What belongs to something, as names of things; what is neither in `sure` nor in `unclear` does not."""

    sure: frozenset[str]
    unclear: frozenset[str]

    def holds(self, name: str) -> bool | None:
        """Is a thing one of them? None: people would disagree."""
        return None if name in self.unclear else name in self.sure


def _thing(
    name: str,
    emoji: str,
    category: str,
    color: str,
    also: str = "",
    *,
    paints: str = "",
    mirrors: bool = True,
    many: str = "",
    noun: Noun | None = None,
) -> Thing:
    noun = noun or Noun(name, many or f"{name}s")
    return Thing(name, emoji, category, color, tuple(also.split()), (color, *paints.split()), mirrors, noun)


# In the order of the sheet, eight a row.
THINGS = {
    thing.name: thing
    for thing in (
        _thing("dog", "🐕", "animal", "brown", "white pink orange"),
        _thing("cat", "🐈", "animal", "orange", "yellow"),
        _thing("cow", "🐄", "animal", "white", "black gray pink"),
        _thing("pig", "🐖", "animal", "pink"),
        _thing("horse", "🐎", "animal", "brown", "orange"),
        _thing("sheep", "🐑", "animal", "white", "gray", many="sheep"),
        _thing("elephant", "🐘", "animal", "gray"),
        _thing("rabbit", "🐇", "animal", "white", "gray pink"),
        _thing("duck", "🦆", "animal", "brown", "green gray orange"),
        _thing("fish", "🐟", "animal", "blue", paints="red orange green purple", many="fish"),
        _thing("bee", "🐝", "animal", "yellow", "black orange gray"),
        _thing("butterfly", "🦋", "animal", "orange", "black", paints="blue pink green", many="butterflies"),
        _thing("apple", "🍎", "fruit", "red", "orange green"),
        _thing("banana", "🍌", "fruit", "yellow", "orange white"),
        _thing("strawberry", "🍓", "fruit", "red", "green", many="strawberries"),
        _thing("pineapple", "🍍", "fruit", "yellow", "green orange"),
        _thing("lemon", "🍋", "fruit", "yellow", "orange green"),
        _thing("watermelon", "🍉", "fruit", "red", "green pink"),
        _thing("carrot", "🥕", "vegetable", "orange", "green"),
        _thing("corn", "🌽", "vegetable", "yellow", "green", noun=Noun("piece of corn", "pieces of corn", "corn")),
        _thing(
            "broccoli", "🥦", "vegetable", "green", noun=Noun("piece of broccoli", "pieces of broccoli", "broccoli")
        ),
        _thing("pizza", "🍕", "food", "orange", "red yellow brown"),
        _thing("cheese", "🧀", "food", "yellow", "orange", noun=Noun("piece of cheese", "pieces of cheese", "cheese")),
        _thing("cake", "🎂", "food", "white", "red yellow pink brown"),
        _thing("donut", "🍩", "food", "brown", "orange yellow pink"),
        _thing("car", "🚗", "vehicle", "red", paints="blue green yellow purple white"),
        _thing("motorcycle", "🏍", "vehicle", "red", "black gray", paints="blue green orange"),
        _thing("train", "🚂", "vehicle", "black", "gray red green"),
        _thing("airplane", "✈", "vehicle", "blue", "gray white"),
        _thing("boat", "⛵", "vehicle", "orange", "red white"),
        _thing("rocket", "🚀", "vehicle", "gray", "red blue yellow"),
        _thing("shirt", "👕", "clothing", "blue", paints="red green yellow pink white black"),
        _thing("dress", "👗", "clothing", "blue", paints="red green yellow purple pink", many="dresses"),
        _thing("shoe", "👟", "clothing", "blue", "white", paints="red green purple black"),
        _thing("hat", "🎩", "clothing", "black", "red"),
        _thing("cap", "🧢", "clothing", "blue", paints="red green yellow pink"),
        _thing("umbrella", "☂", "household", "purple", "blue gray", paints="red green yellow pink"),
        _thing("clock", "⏰", "household", "red", "white", paints="blue green purple", mirrors=False),
        _thing("book", "📕", "household", "red", paints="blue green orange purple", mirrors=False),
        _thing("cup", "☕", "household", "white", "brown gray"),
        _thing("chair", "🪑", "household", "brown", "orange"),
        _thing("hammer", "🔨", "tool", "brown", "gray blue"),
        _thing("saw", "🪚", "tool", "gray", "brown blue white"),
        _thing(
            *("scissors", "✂", "tool", "red", "gray blue white"),
            paints="green orange purple",
            noun=Noun("pair of scissors", "pairs of scissors", "scissors"),
        ),
        _thing("pencil", "✏", "tool", "yellow", "orange pink"),
        _thing("guitar", "🎸", "instrument", "red", "white", paints="blue green black", mirrors=False),
        _thing("piano", "🎹", "instrument", "white", "black gray", mirrors=False),
        _thing("drum", "🥁", "instrument", "red", "white yellow brown blue"),
        _thing("trumpet", "🎺", "instrument", "yellow", "orange gray", mirrors=False),
        _thing("basketball", "🏀", "sport", "orange", "red brown black"),
        _thing("racket", "🎾", "sport", "blue", "gray white"),
        _thing("skateboard", "🛹", "sport", "black", "red gray"),
        _thing("kite", "🪁", "toy", COLORFUL, "orange purple yellow blue"),
        _thing("balloon", "🎈", "toy", "red", paints="blue green yellow purple pink"),
        _thing("teddy", "🧸", "toy", "brown", "yellow orange", many="teddies"),
        _thing("tree", "🌳", "plant", "green", "brown"),
        _thing("cactus", "🌵", "plant", "green", many="cactuses"),
        _thing("rose", "🌹", "flower", "red", "green"),
        _thing("sunflower", "🌻", "flower", "yellow", "brown orange green"),
        _thing("tulip", "🌷", "flower", "pink", "green", paints="red yellow purple white"),
        _thing("sun", "☀", "weather", "yellow", "orange"),
        _thing("cloud", "☁", "weather", "white", "gray blue"),
        _thing("rainbow", "🌈", "weather", COLORFUL, "red orange yellow green blue purple", mirrors=False),
        _thing("snowflake", "❄", "weather", "blue", "white gray"),
    )
}

CATEGORIES = {
    "animal": Noun("animal", "animals"),
    "fruit": Noun("fruit", "fruits"),
    "vegetable": Noun("vegetable", "vegetables"),
    "food": Noun("piece of food", "pieces of food", "food"),
    "vehicle": Noun("vehicle", "vehicles"),
    "clothing": Noun("piece of clothing", "pieces of clothing", "clothes"),
    "household": Noun("household item", "household items"),
    "tool": Noun("tool", "tools"),
    "instrument": Noun("instrument", "instruments"),
    "sport": Noun("piece of sport gear", "pieces of sport gear", "sport gear"),
    "toy": Noun("toy", "toys"),
    "plant": Noun("plant", "plants"),
    "flower": Noun("flower", "flowers"),
    "weather": Noun("weather symbol", "weather symbols"),
}
# Category -> the narrower ones it includes, and the things of others that some would count in.
_INCLUDES = {"food": ("fruit", "vegetable"), "plant": ("flower",)}
_UNCLEAR = {
    "animal": "teddy",
    "fruit": "corn cake",
    "vegetable": "",
    "food": "cup fish",
    "vehicle": "skateboard balloon horse",
    "clothing": "umbrella",
    "household": "hammer saw scissors pencil guitar piano drum trumpet balloon kite teddy basketball racket skateboard "
    "cactus rose tulip sunflower hat cap shoe",
    "tool": "umbrella clock cup book",
    "instrument": "clock",
    "sport": "kite shoe cap motorcycle boat balloon horse",
    "toy": "basketball racket skateboard drum",
    "plant": "apple banana strawberry pineapple lemon watermelon carrot corn broccoli",
    "flower": "cactus broccoli",
    "weather": "umbrella",
}
OBJECT = Noun("object", "objects")

# What people call them as well, none of it two of them. (Key: of `THINGS` or `CATEGORIES`, or "object".)
ALSO_CALLED = {
    "dog": (Noun("puppy", "puppies"), Noun("doggy", "doggies"), Noun("pup", "pups")),
    "cat": (Noun("kitty", "kitties"), Noun("kitten", "kittens")),
    "cow": (Noun("calf", "calves"),),
    "pig": (Noun("piglet", "piglets"), Noun("piggy", "piggies")),
    "horse": (Noun("pony", "ponies"), Noun("foal", "foals")),
    "sheep": (Noun("lamb", "lambs"), Noun("sheep", "sheeps")),
    "rabbit": (Noun("bunny", "bunnies"), Noun("hare", "hares")),
    "duck": (Noun("duckling", "ducklings"),),
    "fish": (Noun("fish", "fishes"),),
    "bee": (Noun("bumblebee", "bumblebees"),),
    "watermelon": (Noun("melon", "melons"),),
    "corn": (Noun("piece of maize", "pieces of maize", "maize"),),
    "donut": (Noun("doughnut", "doughnuts"),),
    "car": (Noun("auto", "autos"), Noun("automobile", "automobiles")),
    "motorcycle": (Noun("motorbike", "motorbikes"), Noun("bike", "bikes")),
    "train": (Noun("locomotive", "locomotives"),),
    "airplane": (Noun("plane", "planes"), Noun("aeroplane", "aeroplanes"), Noun("jet", "jets")),
    "boat": (Noun("ship", "ships"), Noun("sailboat", "sailboats")),
    "rocket": (Noun("spaceship", "spaceships"),),
    "shirt": (Noun("tshirt", "tshirts"), Noun("t shirt", "t shirts")),
    "dress": (Noun("gown", "gowns"),),
    "shoe": (Noun("sneaker", "sneakers"),),
    "umbrella": (Noun("parasol", "parasols"),),
    "cup": (Noun("mug", "mugs"), Noun("teacup", "teacups")),
    "chair": (Noun("seat", "seats"),),
    "saw": (Noun("handsaw", "handsaws"),),
    "scissors": (Noun("pair of shears", "pairs of shears", "shears"),),
    "piano": (Noun("keyboard", "keyboards"),),
    "racket": (Noun("racquet", "racquets"),),
    "teddy": (Noun("bear", "bears"), Noun("teddy bear", "teddy bears")),
    "cactus": (Noun("cactus", "cacti"),),
    "animal": (Noun("creature", "creatures"),),
    "vegetable": (Noun("veggie", "veggies"),),
    "clothing": (Noun("garment", "garments"),),
    "toy": (Noun("plaything", "playthings"),),
    "flower": (Noun("blossom", "blossoms"),),
    "object": (Noun("thing", "things"), Noun("one", "ones")),
}


def is_a(category: str) -> Members:
    """What belongs to a category or one it includes."""
    within = (category, *_INCLUDES.get(category, ()))
    sure = frozenset(thing.name for thing in THINGS.values() if thing.category in within)
    return Members(sure, frozenset(_UNCLEAR[category].split()))
