"""Captions: the `<dog>` markers, what a comprehensive caption names, checks and drafts."""
