"""Storage of the rows of class centers and their moments."""
