"""Order of the tests: whoever runs them on two workers should not wait at the end for one long file."""

import gc

# Traced graphs are millions of objects that live long: by Python's own thresholds a sixth of the time went into looking
# through them for garbage.
gc.set_threshold(200_000, 20, 100)


def pytest_collection_modifyitems(items):
    """Files that hold a slow test come first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
