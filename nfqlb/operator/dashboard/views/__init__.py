"""What is drawn: each module makes lines of a part of the screen from the state, for any width and height."""
