"""What one visitor of the page may ask for. Whoever is over a bound is told so in words, and nobody waits for it."""

from __future__ import annotations

from lens_adapter.pictures.colors import PALETTE, SHADES

MOST_PIXELS = 25_000_000  # of a picture; checked before it is decoded
LARGEST_UPLOAD = "40mb"
MOST_PICTURES = 40  # of one's own that are open at a time

MOST_PROMPTS = SHADES * len(PALETTE)  # of a picture, or names in an answer: a color each
LONGEST_PROMPT = 500  # letters; also of a question
LONGEST_NAME = 200  # letters, of what is taught
MOST_CLICKS = 20  # on one thing
MOST_TOKENS = 256  # of an answer
MOST_TURNS = 20  # questions and answers that the chat shows

LARGEST_REQUEST = 100_000  # bytes of anything but an upload
MOST_WAITING = 128  # requests in the queue
MOST_WAITING_EACH = 6  # of them from one address
NEW_SESSIONS_EACH = 30  # that one address may begin within a minute
LONGEST_SESSION = 64  # letters of a session's name
AT_ONCE = 2  # requests that ask no model and run at the same time: each may hold a decoded picture

STATUS_EVERY = 2.0  # seconds between two words about how long one waits
MOST_SESSIONS = 1000  # whose state is kept; the one used longest ago goes first
EXPIRY = 2 * 3600  # seconds after which uploads, results and states go
SWEEP = 600  # seconds between looks at what has expired
