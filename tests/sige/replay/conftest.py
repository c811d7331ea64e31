"""Tests of replaying share operands and runs of steps."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for test_merging.py, which takes them of other files here
