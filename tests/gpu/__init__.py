"""What only a GPU can show: ``pytest tests/gpu -s -n 0`` for right numbers, ``python -m tests.gpu`` for times."""
