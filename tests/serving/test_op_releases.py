import pytest
from tensorflow.python.framework import op_def_registry

from serving.op_releases import NEW_IN, NEWEST, OLDEST, TEXT, introduced, parse_version


def test_every_operation_of_the_releases_is_in_the_installed_tensorflow():
    names = [name for names in NEW_IN.values() for name in names]
    assert len(set(names)) == len(names)
    assert [name for name in names if op_def_registry.get(name) is None] == []


def test_an_operation_knows_its_release():
    assert introduced("DecodeWebP") == (2, 20)
    assert introduced("MatMul") is None
    assert all(OLDEST < version <= NEWEST for version in NEW_IN)
    assert not any(introduced(name) for name in TEXT)


def test_versions_are_read_with_and_without_the_patch():
    assert parse_version("2.19") == parse_version("2.19.1") == (2, 19)


@pytest.mark.parametrize("wrong", ["", "2", "2.19.1.0", "2.x", "v2.19", "2.-1", "²·19", "2.99999"])
def test_what_is_no_version_is_refused(wrong):
    with pytest.raises(ValueError, match="a server's version is"):
        parse_version(wrong)


@pytest.mark.parametrize("unknown", ["1.15", "2.15", "2.22"])
def test_a_version_of_which_nothing_is_known_is_refused(unknown):
    with pytest.raises(ValueError, match=r"known for 2\.16 to 2\.21"):
        parse_version(unknown)
