"""The stage "Plan": the dataset's statistics, the decisions, and the memory they need."""
