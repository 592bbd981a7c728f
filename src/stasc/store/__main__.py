"""Runs the command `python -m stasc.store`."""

import sys

from stasc.store.housekeeping import main

sys.exit(main())
