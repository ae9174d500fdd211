"""A trained network in use: loaded, embedding faces, exported."""
