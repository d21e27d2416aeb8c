"""What `fedsim bench` measures."""
