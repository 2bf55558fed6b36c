"""What the project claims about its speed, as commands."""
