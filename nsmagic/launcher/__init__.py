"""The warm template that containers are cloned from, and what it is told."""
