"""Inference: trained models are loaded, embed faces, and are exported."""
