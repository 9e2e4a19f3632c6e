"""What theory says: pure functions that predict what an optimizer does."""
