"""`python -m a2tgpo_trl` is `a2tgpo`."""

import sys

from .cli import main


sys.exit(main())
