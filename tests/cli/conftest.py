"""Some commands talk to a Hub: the local one."""

from tests.hub.conftest import hub, naps, saved

__all__ = ["hub", "naps", "saved"]
