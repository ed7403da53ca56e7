"""The built-in world of everyday things: 64 pictures, scenes of them, and what is said about the scenes."""
