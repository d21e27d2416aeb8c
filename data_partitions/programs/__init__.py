"""Programs that a model wrote, and how they are judged."""
