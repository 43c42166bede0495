"""A sweep while it runs."""
from contextlib import contextmanager
@contextmanager
def watched(sweep):
    yield
