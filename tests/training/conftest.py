"""Runs that were not interrupted, to compare with."""

from pathlib import Path

import pytest

from tests.training.tiny_run import LONG, train


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    train(directory)
    return directory


@pytest.fixture(scope="session")
def uninterrupted_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    directory = tmp_path_factory.mktemp("uninterrupted-long")
    train(directory, LONG)
    return directory
