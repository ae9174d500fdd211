"""The processes of a run: their signals, their parent, who stands still, and that no other run is in its folder."""
