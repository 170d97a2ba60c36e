"""``python -m mwork_lens`` is ``mwork-lens``."""

from .cli import main

main()
