"""What only a GPU can show: nothing here has been measured on one yet.

``python -m pytest -o addopts= -W default tests/gpu -s`` for right numbers (needing pytest, and no plugin),
``python -m tests.gpu`` for tables of times, ``python -m tests.gpu.cost`` for what these should be.
"""
