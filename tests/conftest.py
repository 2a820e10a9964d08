"""Order of the tests: whoever runs them on two workers should not wait at the end for one long file."""


def pytest_collection_modifyitems(items):
    """Files that hold a slow test come first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
