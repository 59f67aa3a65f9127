"""What guidance and steering cost: `python -m attnsteer.bench`. Importing it loads neither torch nor diffusers."""
