"""What answers are compared as: names, quantities, and values made of them."""
