"""What one request may ask for, and how many may wait. A picture and a prompt are held to what the page allows."""

from __future__ import annotations

from lens_adapter.app.bounds import LONGEST_PROMPT, MOST_PIXELS

__all__ = ["LONGEST_PROMPT", "MOST_PIXELS"]

MOST_PROMPTS = 16  # about a picture: each has a mask of its size
LARGEST_REQUEST = 30_000_000  # bytes of JSON; as base64, a picture file of 22 MB
SLOWEST_REQUEST = 30.0  # seconds that a request may take to arrive
MOST_HELD = 32  # requests that arrive, wait or are worked on
BATCH_SIZE = 8  # prompts that run together
COLLECTING = 0.01  # seconds that the first request of a batch waits for others
OPENING = 4  # pictures that are decoded at the same time
RETRY_AFTER = 1  # seconds, said to who comes when there is no room
