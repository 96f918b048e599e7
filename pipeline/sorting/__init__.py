"""Photos sorted into folders by their groups: what ``scan sort`` makes, notes, moves and takes back."""
