"""Run what launch.py needs before anything is installed. Standard library only."""
