"""What a policy can call."""
