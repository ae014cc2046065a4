"""Composes, checks, distributes and displays the runs of a command."""
