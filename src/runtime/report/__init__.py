"""Reports: one HTML file that says what something is, what made it, and checks itself."""
