"""What is measured: one function per benchmark, in the order of the page.

A new one needs the decorator and, in a new room, a line here.
"""

from benchmarks.suite import base, images, sams, heads, rivals, whole, host, compiling  # noqa: F401, I001 (the order of the page)
from benchmarks.suite.registry import BENCHMARKS

__all__ = ["BENCHMARKS"]
