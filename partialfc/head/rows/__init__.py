"""Rows of class centres and of their moments: where they live, how they are stored, and how they step."""
