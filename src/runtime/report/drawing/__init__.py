"""Figures as inline SVG: curves, intervals, the lineage around an artifact."""
