"""Programs, accelerators and what one must do on the other: what the scripts that compile or measure steps share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a checkout runs where it is not installed
