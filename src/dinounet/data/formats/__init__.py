"""One reader a format: from files to arrays with a place in space."""

READERS = 2
"""Version of how files are read: raised with every change after which a file gives other numbers, another spacing or
another place. Caches and plans of another version are not used again."""
