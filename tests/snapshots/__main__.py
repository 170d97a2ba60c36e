"""Write all snapshots anew."""

from . import write

write()
