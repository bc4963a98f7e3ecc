"""What people touch: the command line and batch jobs."""
