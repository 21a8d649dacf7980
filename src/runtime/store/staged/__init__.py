"""What is done to a staged tree before it becomes an artifact."""
