"""Whole runs over folders of any size: prediction, repair, recalibration; resumable."""
