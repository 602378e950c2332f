"""A cache on disk: plain Zarr v3 arrays, commit records that say which rows exist, seals that say what they are."""
