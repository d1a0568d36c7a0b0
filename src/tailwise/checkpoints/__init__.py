"""What is on disk: formats, tensors, roles, and the weight matrices made of them."""
