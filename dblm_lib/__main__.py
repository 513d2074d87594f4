"""``python -m dblm_lib``: the command ``dblm``."""

import sys

from .cli import main

if __name__ == "__main__":  # not when tools look what the package holds
    sys.exit(main())
