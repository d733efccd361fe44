"""The benchmark's parts: contenders, prompts, timed runs in interleaved rounds, sections, rows."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a checkout runs where it is not installed
