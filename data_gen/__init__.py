"""Text conversations to a spoken instruction data set."""
