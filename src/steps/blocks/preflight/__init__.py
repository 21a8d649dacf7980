"""What can be known of a job before any process starts: torch-free, and nothing is copied."""
