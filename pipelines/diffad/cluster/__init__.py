"""Jobs whose work is done by the processes of a Ray cluster, with the results that one process gives."""
