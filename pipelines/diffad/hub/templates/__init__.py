"""Files that are copied to repositories as they are; nothing imports them."""
