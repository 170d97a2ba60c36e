"""Types are checked elsewhere: here the same calls run many times."""

import pytest


@pytest.fixture(autouse=True)
def _unchecked(unchecked):
    """As users run the package."""
