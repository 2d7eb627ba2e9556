"""How good the masks are: metrics of cases and classes, and a report that a person can look at."""
