"""What all tests share: property tests draw the same examples every time, and have no deadline."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
