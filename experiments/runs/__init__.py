"""What a run is and what it leaves on the disk."""
