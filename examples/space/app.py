"""The page of `lens-adapter app` as a Hugging Face Space, with the models that ship with the package.

Another model: give `--model`, `--adapter` and, on a GPU, `--device cuda` here; `lens-adapter app --help` says more.
"""

import sys

from lens_adapter.cli import main

sys.exit(main(["app", "--host", "0.0.0.0"]))
