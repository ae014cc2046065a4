"""From a command to its runs: composed, checked, spread over processes, watched."""
