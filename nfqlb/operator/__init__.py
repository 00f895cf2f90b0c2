"""What an operator touches: the command line and what it prints."""
