"""The data package reads what a user brings: prompts, training images, and pictures of both."""
