"""The number of examples of a property test."""

from hypothesis import settings


def examples(count: int) -> int:
    """``count`` in `make test-all`; no more than the profile's own number in `make test`."""
    profile = settings.get_current_profile_name()
    return count if profile == "ci" else min(count, settings.get_profile(profile).max_examples)
