"""Print the page of decoders; with --write, write it."""

import sys

from .table import PAGE, page

if "--write" in sys.argv[1:]:
    PAGE.write_text(page(), encoding="utf-8")
else:
    print(page())
