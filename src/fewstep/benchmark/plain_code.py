"""The plain implementations that benchmarks compare with; they live with the tests' reference code."""

import importlib.util
from pathlib import Path
from types import ModuleType

PLAIN = Path(__file__).parents[3] / "tests" / "plain.py"


def load_plain(benchmark: str) -> ModuleType:
    """Return tests/plain.py of the checkout that this package is installed from.

    Raises:
        ValueError: if it is not there, as in an installed wheel.
    """
    specification = importlib.util.spec_from_file_location("fewstep_plain", PLAIN)
    if not PLAIN.is_file() or specification is None or specification.loader is None:
        raise ValueError(
            f"bench {benchmark} compares with tests/plain.py, which is only in a checkout; "
            "run it from a clone"
        )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
