"""Files written whole or not at all, read back exactly, and told apart by their contents."""
