"""Images: decoded, kept as bytes, cropped, flipped and resized."""
