"""Creation and inspection of packs."""
