"""What is asked: batch -> Example, inputs -> Condition."""
