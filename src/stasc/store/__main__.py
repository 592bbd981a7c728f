"""`python -m stasc.store`: lists, verifies and cleans the store."""

import sys

from stasc.store.housekeeping import main

sys.exit(main())
