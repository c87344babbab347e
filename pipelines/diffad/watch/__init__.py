"""Judging parts as they come, from a folder or a camera, and telling the line: each part once, whatever fails or is killed."""
