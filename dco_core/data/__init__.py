"""Folders of pictures with captions; aspect-ratio buckets and crops."""
