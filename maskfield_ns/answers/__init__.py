"""From a question to scores and masks: text, image, click, object list and decision; one rule each."""
