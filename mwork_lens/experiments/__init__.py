"""The paper's items, one named experiment each."""
