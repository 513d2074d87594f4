"""``python -m dblm_lib.cli``."""

import sys

from . import main

if __name__ == "__main__":  # not when tools look what the package holds
    sys.exit(main())
