"""How good a detector is: metrics, confidence intervals, evaluation of a test set, reports."""
