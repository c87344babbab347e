"""From an image to a verdict: score terms, their combination, calibration on good images, thresholds."""
