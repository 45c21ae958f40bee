"""`python -m esgd_hpc` is `esgd`."""

import sys

from esgd_hpc.cli import main

sys.exit(main())
