"""The first minutes on a machine with a GPU: the stages, their order and limits, and a report of their rows."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a machine may have this checkout and no installed project
