"""Images and maps as pixels: reading, preprocessing, streams, drawing."""
