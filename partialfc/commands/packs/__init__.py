"""Commands that make, read and change packs."""
