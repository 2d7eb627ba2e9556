"""Every persisted record as a strict dataclass: what a file holds, in which format, and how older ones become it."""
