"""What can be trained: each file makes one Task (init, loss) from models and maths."""
