"""`python -m dco_core`."""

import sys

from .command_line import main

sys.exit(main())
