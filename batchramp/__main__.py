"""``python -m batchramp`` is the command ``batchramp``."""

from batchramp.cli import main

main()
