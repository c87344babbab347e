"""What the package asks of the machine below it: files written whole, disk space, memory, precision, text."""
