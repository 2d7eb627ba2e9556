"""The page on what was trained, how well it segments, and where it fails."""
