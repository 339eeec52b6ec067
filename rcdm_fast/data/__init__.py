"""Images and other items from anywhere: what a name means, items by place or in order, image sets."""
