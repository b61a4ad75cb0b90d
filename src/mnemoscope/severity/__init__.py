"""The severity package judges generated images, and says which prompts are memorized."""
