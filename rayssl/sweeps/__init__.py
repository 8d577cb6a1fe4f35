"""Many trainings of one job: what to run, where it is written, and the running through Tune."""
