"""Asking a service over HTTP: addresses, deadlines, retries."""
