"""Makes gramprune importable: it need not be installed. Scripts that need it import this before it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
