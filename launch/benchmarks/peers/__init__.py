"""Other simulators, measured beside the engine: each in an environment and a process of its own."""
