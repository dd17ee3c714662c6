"""Turn a plan into films and pictures on the disk, by one driver for all modes."""
