"""`python -m dco_core`: train, merge, resize, convert, inspect, evidence."""
