"""At home in other people's tools; each has a folder of its own."""
