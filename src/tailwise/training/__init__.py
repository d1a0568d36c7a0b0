"""What happens while a model trains: points are taken, and rules over time look at them."""
