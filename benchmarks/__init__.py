"""How well, how fast and how big: measured against other ways to the same end."""
