"""What is attached to a radiance field and how it is asked."""
