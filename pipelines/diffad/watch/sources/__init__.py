"""Where parts come from: a folder that a camera writes to, a video file, or a live stream."""
