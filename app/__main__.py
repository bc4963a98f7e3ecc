"""``python -m app`` is ``vlm``."""

import sys

from app.cli import main

sys.exit(main())
