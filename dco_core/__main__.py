"""`python -m dco_core`."""

import io
import sys

from .cli.commands import main

if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may not fit the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
