"""Results that version 0.1 saved, which later versions load."""
