"""Making packs and looking into them: from folders of faces to a .rec, and back."""
