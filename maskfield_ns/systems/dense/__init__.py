"""Dense feature distillation."""
