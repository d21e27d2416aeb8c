"""Tables and figures of finished runs; imports neither torch nor transformers."""
