"""`python -m clipsan.pipeline` is the command `clipsan`, for `ray job submit`."""

import sys

from clipsan.pipeline.cli import main

sys.exit(main())
