"""Whether two pictures are the same one, at another size, quality or crop."""
