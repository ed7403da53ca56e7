"""Attacks, with fixed seeds: a few of each run in the suite, thousands by `python -m tests.attacks`."""
