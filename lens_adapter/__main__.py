"""`python -m lens_adapter` is `lens-adapter`."""

import sys

from lens_adapter.cli import main

if __name__ == "__main__":
    sys.exit(main())
