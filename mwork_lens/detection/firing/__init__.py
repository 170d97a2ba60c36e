"""Whose feed-forward neurons are, by how they fire: selections of arrays, and the pass that counts."""
