"""`python -m attlas` is the command `attlas`."""

import sys

from attlas.cli import main

sys.exit(main())
