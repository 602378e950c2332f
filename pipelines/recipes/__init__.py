"""Recipes: whole methods, from data to a page of results, as one TOML file of stages each."""
