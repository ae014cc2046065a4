"""A device that is at hand for some minutes: values, times and training steps, in one command."""
