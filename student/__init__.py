"""A small model that learns from a cache; it never meets the teacher."""
