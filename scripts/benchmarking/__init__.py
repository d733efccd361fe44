"""The pieces of the benchmark, one concept a module."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a checkout runs where it is not installed
