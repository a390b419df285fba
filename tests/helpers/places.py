"""Where things are, for tests in any folder."""

from pathlib import Path


HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
