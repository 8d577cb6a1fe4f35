"""Environments: what a step, a life and a game are, and how a score is counted."""
