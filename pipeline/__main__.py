"""`python -m pipeline` is the command `clipsan`, for `ray job submit` and for a checkout that is not installed."""

import sys

from pipeline.cli import main

sys.exit(main())
