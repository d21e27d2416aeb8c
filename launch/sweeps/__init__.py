"""Many runs by one command: what they are, how they are run, what they came to."""
