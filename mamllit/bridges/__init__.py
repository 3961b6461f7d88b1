"""Ways in and out for users of other libraries. Each bridge needs its library installed; nothing else of mamllit does."""
