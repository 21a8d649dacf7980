"""Steps of Acme."""
